"""The events of a study. Each class is one kind of line in `journal.jsonl`; some are shown to watchers, too.

A line holds the name of the class under `event`, the time under `at`, and each field that differs from its default.
`STUDY_FORMAT` in `studies.record_files` is the number of this form too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Literal

from loraxs_search.log import clock
from loraxs_search.records.codec import Direction, Scalar, Split, to_json
from loraxs_search.records.search import Baseline, Command, SearchPlan
from loraxs_search.records.task import DataReport
from loraxs_search.records.trial import Hyperparameters, Proposal, TrialReport, TrialState


@dataclass(frozen=True, kw_only=True)
class Event:
    """What all events have.

    Args:
        at: When it happened, seconds since 1970; by default now.
        study: The study's name, which a line does not repeat; None before the study has one.
    """

    at: float = field(default_factory=lambda: clock.steady_time())  # noqa: PLW0108  # tests hold it still
    study: str | None = None

    def to_line(self) -> bytes:
        """Return the event as its line, newline included."""
        named = {}
        for each in fields(self):
            default = each.default_factory() if each.default_factory is not MISSING else each.default
            if each.name not in ("at", "study") and getattr(self, each.name) != default:
                named[each.name] = getattr(self, each.name)
        line = {"event": type(self).__name__, **named, "at": self.at}
        text = to_json(line, sort_keys=False)  # samplers go by the order of parameters
        # Maybe half a character, as in a file's name that is no text: no reader takes a line with it.
        if "\\ud" in text:
            text = json.dumps(json.loads(text), ensure_ascii=False)
        return text.encode(errors="replace") + b"\n"


# ---- what the state of a search is made of ---------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class DriverStarted(Event):
    """A driver has been at work on the study since then.

    Args:
        space_yaml, plan, params: What MLflow's run of the search says of it; no plan, no such run.
        tags: What the search runs on now.
    """

    since: float
    space_yaml: str = ""
    plan: SearchPlan | None = None
    params: Mapping[str, Scalar] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialStarted(Event):
    """A trial was proposed with these params.

    Args:
        command: Id of the command that asked for it; empty where the search proposed it.
        lineage: Id of the trial whose params it was added with; empty if there is none.
        proposal: What Optuna knows of the params.
        hyperparameters: What the params resolve to; None if they cannot be resolved.
    """

    trial_id: str
    params: Mapping[str, Scalar]
    command: str = ""
    lineage: str = ""
    proposal: Proposal = field(default_factory=lambda: Proposal({}, {}))
    hyperparameters: Hyperparameters | None = None


@dataclass(frozen=True, kw_only=True)
class TrialReported(Event):
    """A trial was scored on validation rows."""

    report: TrialReport

    @property
    def trial_id(self) -> str:
        return self.report.trial_id


@dataclass(frozen=True, kw_only=True)
class TrialEnded(Event):
    """A trial trained all its steps, was stopped early, or failed.

    Args:
        worked_s: Seconds since its start in which a driver was at work.
        is_cut: Whether the time budget ended it.
    """

    trial_id: str
    state: TrialState
    reason: str
    worked_s: float = 0.0
    is_cut: bool = False


@dataclass(frozen=True, kw_only=True)
class TrialContinued(Event):
    """A trial that the time budget had ended trains on from its last state: the search has more time."""

    trial_id: str


@dataclass(frozen=True, kw_only=True)
class TrainingEnded(Event):
    """There is no more to train; `notice` says why where the budget is not used up."""

    notice: str


@dataclass(frozen=True, kw_only=True)
class Reopened(Event):
    """The search continues after its trials had ended, for as many commands so far."""

    number: int


@dataclass(frozen=True, kw_only=True)
class Commanded(Event):
    """The driver has taken a command, and has not decided on it."""

    command: Command


@dataclass(frozen=True, kw_only=True)
class Answered(Event):
    """The driver has decided on a command.

    Args:
        state: `queued` is said by the sender, where no search has answered yet.
        text: Shown to users: what happens now, or why nothing does.
        hint: What to do about a refusal.
        facts: What the verb decided, which its effect is rebuilt from.
    """

    command_id: str
    state: Literal["done", "refused", "queued"]
    text: str
    hint: str = ""
    facts: Mapping[str, Scalar] = field(default_factory=dict)


# ---- what only MLflow receives ---------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class AdapterWritten(Event):
    """An adapter lies in `folder`, to be kept as a logged model of a trial's run.

    Args:
        trial_id: The adapter's; a refit's is kept in the run of `run_of`, the trial it repeats.
        folder: Below that of the study, unless it is absolute.
        scores: Of a candidate, by split and metric, such as `test.accuracy`.
    """

    trial_id: str
    folder: str
    run_of: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BaselinesMeasured(Event):
    """What simple models reach on the search's rows."""

    baselines: tuple[Baseline, ...]


@dataclass(frozen=True, kw_only=True)
class ReportWritten(Event):
    """The report of a search lies in a file of the study's folder, to be kept as an artifact of its run."""

    path: str


@dataclass(frozen=True, kw_only=True)
class SearchFinished(Event):
    """A driver ended, with or without the search; numbers of `summary` become metrics, the rest tags."""

    state: Literal["FINISHED", "FAILED", "KILLED"]
    summary: Mapping[str, Scalar] = field(default_factory=dict)


# ---- what only watchers are shown ------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    """Other work than training trials begins, or has got further.

    Args:
        text: What is being done, in a few words.
        done, total: How much of it, in `unit`; None if that is not counted.
    """

    text: str
    done: int | None = None
    total: int | None = None
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class SearchStarted(Event):
    """Trials are about to train, for the first time or again after an interruption.

    Args:
        metric: What trials are compared by.
        num_trials: Trials that the search will end with.
        num_refits: Trainings of the best trials from new seeds that follow, at most.
        report_every: Steps between two reports of a trial.
        device, dtype: Of the first host.
        num_slots: Trials at once.
        why_slots: Why so many; empty where that was asked for.
        time_left_s: What is left of the time budget; None if there is none.
        notes: What of the space may not be what was meant.
        finishing: Why it ends without new trials; empty while it does not.
    """

    task: str
    metric: str
    direction: Direction
    num_trials: int
    max_steps: int
    report_every: int
    num_refits: int
    device: str
    dtype: str
    num_slots: int
    why_slots: str = ""
    time_left_s: float | None = None
    notes: tuple[str, ...] = ()
    finishing: str = ""


@dataclass(frozen=True, kw_only=True)
class DataRead(Event):
    """The rows of the task are read, and what is known of them; once for a study.

    Args:
        metric: The task's.
        num_rows: Of each split, of validation those that reports score.
    """

    metric: str
    num_rows: Mapping[Split, int]
    report: DataReport


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something that people should know; the search continues."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Steered(Event):
    """A command was answered with this text.

    Args:
        finishing: Why the search ends without new trials; empty while it does not.
    """

    text: str
    finishing: str = ""


@dataclass(frozen=True, kw_only=True)
class RowsScored(Event):
    """A candidate or a baseline was scored on all rows of a split that are for it.

    Args:
        what: A baseline is scored on `validation`; so is each candidate, and the finalist on `test` too.
        name: The baseline's, a trial's id, or a refit's, such as `00002.1`.
    """

    what: Literal["baseline", "candidate"]
    name: str
    split: Literal["validation", "test"]
    metrics: Mapping[str, float]


# ---- what no line holds ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class TrialsAdvanced(Event):
    """Trials have got further since their last reports; only the latest is kept, in its own file.

    Args:
        steps: That trials have taken, by trial, or by refit (`00004.1`); some may be missing.
    """

    steps: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class SearchEnded(Event):
    """Nobody works on the study any more; always the last event.

    Args:
        state: `interrupted` also after an error; `loraxs-search resume` continues then.
        notice: Why it ended before its budget was used, as shown to users; empty where it was used.
    """

    state: Literal["finished", "interrupted"]
    notice: str = ""


TrialEvent = TrialStarted | TrialReported | TrialEnded | TrialContinued
# These may come while no driver trains: the time until then was nobody's work.
AsideEvent = Reopened | Commanded | Answered | AdapterWritten | BaselinesMeasured | ReportWritten | SearchFinished
WatchedEvent = Phase | SearchStarted | DataRead | Warned | Steered | RowsScored
LoggedEvent = DriverStarted | TrialEvent | TrainingEnded | AsideEvent | WatchedEvent
ShownEvent = TrialEvent | WatchedEvent | TrialsAdvanced | SearchEnded
