"""The result of a study's commands: the one state that its search follows, and its budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from loraxs_search.errors import CommandError
from loraxs_search.log.clock import steady_time
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.literals import Scalar
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialRecord
from loraxs_search.studies.folder import StudyFolder


@dataclass(frozen=True)
class AskedTrial:
    """A trial that a person asked for; it has been proposed once a trial's record names its command.

    Args:
        params: Those that are given.
        source: The trial whose params it has but for those given by the command; empty if there is none.
    """

    command_id: str
    params: Mapping[str, Scalar]
    source: str = ""


@dataclass
class SteeringState:
    """Rebuilt from the journal's commands and their answers, in their order; nothing else changes it.

    Args:
        stopping: Trials that are to end, with the reason; it stays here once they have.
        at_once: Those of them that end at their next step, without a report.
        finishing: Why the study ends without new trials; None while it does not.
        asked: Trials that people asked for, by the id of the command, in order; they stay here once they have started.
        trials: How many the search is to propose itself, where that was extended.
        time_budget_s: The time budget of all drivers together, where that was extended.
        num_reopenings: Commands that asked for more after all trials had ended.
    """

    stopping: dict[str, str] = field(default_factory=dict)
    at_once: set[str] = field(default_factory=set)
    finishing: str | None = None
    asked: dict[str, AskedTrial] = field(default_factory=dict)
    trials: int | None = None
    time_budget_s: float | None = None
    num_reopenings: int = 0


@dataclass(frozen=True)
class SteeredStudy:
    """A study as a verb sees it when it decides.

    Args:
        state: What earlier commands have made of it.
    """

    folder: StudyFolder
    journal: StudyLog
    state: SteeringState

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def records(self) -> Mapping[str, TrialRecord]:
        return self.journal.records

    @property
    def plan(self) -> SearchPlan:
        """Its plan, as earlier commands have extended it."""
        return extended(self.folder.info.search, self.state)

    @property
    def trials_have_ended(self) -> bool:
        """Whether there is no more to train: candidates are being scored, or have been."""
        return self.journal.notice is not None


def extended(plan: SearchPlan, state: SteeringState) -> SearchPlan:
    """Return a plan with the trials and the time that commands have given it."""
    return replace(
        plan,
        trials=plan.trials if state.trials is None else state.trials,
        time_budget=plan.time_budget if state.time_budget_s is None else state.time_budget_s,
    )


def planned(plan: SearchPlan, state: SteeringState, records: Mapping[str, TrialRecord]) -> SearchPlan:
    """Return a plan whose `trials` are all that the study will have.

    Those that people asked for are included; those that `finish` has kept from being proposed are not.
    """
    whole = extended(plan, state)
    proposed = whole.trials if state.finishing is None else num_proposed(records, state)
    return replace(whole, trials=proposed + len(state.asked))


def has_ended(study: SteeredStudy) -> bool:
    """Whether the search has to begin anew for what comes now: its trials have ended, or its candidates are scored."""
    return study.trials_have_ended or study.folder.candidates() is not None


def num_proposed(records: Mapping[str, TrialRecord], state: SteeringState) -> int:
    """Return how many trials the search has proposed itself; those that people asked for come on top.

    The search asks at each of its turns: trials are looked through only where people have asked for some.
    """
    return len(records) - (sum(bool(record.command) for record in records.values()) if state.asked else 0)


def unstarted(records: Mapping[str, TrialRecord], state: SteeringState) -> list[AskedTrial]:
    """Return the trials that people asked for and that have not started, in their order."""
    started = {record.command for record in records.values()} if state.asked else set()
    return [asked for asked in state.asked.values() if asked.command_id not in started]


def check_time(study: SteeredStudy) -> None:
    """Refuse more trials where there is no time to train them.

    Raises:
        CommandError: the time budget is used up.
    """
    budget_s = study.plan.time_budget
    if budget_s is not None and study.journal.spent_by_now_s >= budget_s:
        raise CommandError(
            f"Study {study.name!r} has used up its time budget of {budget_s:g} s.",
            hint=f"give it more with `loraxs-search extend {study.name} --time 1h`",
        )


class Deadline:
    """The end of a time budget that all drivers of a study share; it moves when a command extends the budget.

    Args:
        since: When this driver began, less what others before it have worked, seconds since 1970.
    Attributes:
        end_s: What of the budget is kept for refits, last scores and baselines.
        report_s: How long trials take from one report to the next: they stop at a report, which comes half as late.
    """

    def __init__(self, plan: SearchPlan, state: SteeringState, since: float) -> None:
        self._plan, self._state, self._since = plan, state, since
        self.end_s = self.report_s = 0.0

    @property
    def budget_s(self) -> float | None:
        """The time budget; None if there is none."""
        return extended(self._plan, self._state).time_budget

    @property
    def left_s(self) -> float | None:
        """What is left of the budget; None if there is none."""
        return None if self.budget_s is None else max(0.0, self._since + self.budget_s - steady_time())

    @property
    def is_over(self) -> bool:
        """Whether trials are to stop at their next report."""
        return self.left_s is not None and self.left_s <= self.end_s + self.report_s / 2

    @property
    def is_late(self) -> bool:
        """Whether trials that have not reported by now are to end at their last reports."""
        return self.left_s is not None and self.left_s <= max(0.0, self.end_s - self.report_s / 2)
