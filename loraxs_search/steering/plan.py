"""The budget of a study as its commands have extended it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from loraxs_search.errors import CommandError
from loraxs_search.records import SearchPlan, TrialRecord
from loraxs_search.steering._base import SteeredStudy
from loraxs_search.steering.state import SteeringState


def extended(plan: SearchPlan, state: SteeringState) -> SearchPlan:
    """Return a plan with the trials and the time that commands have given it."""
    return replace(
        plan,
        trials=plan.trials if state.trials is None else state.trials,
        time_budget_s=plan.time_budget_s if state.time_budget_s is None else state.time_budget_s,
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


def check_time(study: SteeredStudy, plan: SearchPlan) -> None:
    """Refuse more trials where there is no time to train them.

    Raises:
        CommandError: the time budget is used up.
    """
    budget_s = plan.time_budget_s
    if budget_s is not None and study.journal.spent_by_now_s >= budget_s:
        raise CommandError(
            f"Study {study.name!r} has used up its time budget of {budget_s:g} s.",
            hint=f"give it more with `loraxs-search extend {study.name} --time 1h`",
        )
