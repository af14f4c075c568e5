"""The budget of a study as its commands have extended it."""

from __future__ import annotations

from dataclasses import replace

from loraxs_search.records import SearchPlan
from loraxs_search.steering.state import SteeringState
from loraxs_search.studies import Journal


def extended(plan: SearchPlan, state: SteeringState) -> SearchPlan:
    """Return a plan with the trials and the time that commands have given it."""
    return replace(
        plan,
        trials=plan.trials if state.trials is None else state.trials,
        time_budget_s=plan.time_budget_s if state.time_budget_s is None else state.time_budget_s,
    )


def num_proposed(journal: Journal) -> int:
    """Return how many trials the search has proposed itself; those that people asked for come on top."""
    return sum(not record.command for record in journal.records.values())
