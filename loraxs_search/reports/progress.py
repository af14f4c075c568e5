"""How far a study has come."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from loraxs_search.records import SearchPlan, TrialRecord, TrialState
from loraxs_search.studies import StudyFolder


@dataclass(frozen=True)
class Progress:
    """Counts of a study's trials by state, out of `num_trials`."""

    num_trials: int
    running: int
    complete: int
    pruned: int
    failed: int

    @property
    def ended(self) -> int:
        return self.complete + self.pruned + self.failed


def progress(records: Collection[TrialRecord], plan: SearchPlan) -> Progress:
    """Count `records` by state."""

    def count(state: TrialState) -> int:
        return sum(record.state is state for record in records)

    return Progress(
        num_trials=max(plan.trials, len(records)),
        running=count(TrialState.RUNNING),
        complete=count(TrialState.COMPLETE),
        pruned=count(TrialState.PRUNED),
        failed=count(TrialState.FAIL),
    )


def study_state(folder: StudyFolder) -> str:
    """Return `running`, `finished` or `interrupted`."""
    if folder.is_running():
        return "running"
    return "finished" if folder.candidates() is not None else "interrupted"
