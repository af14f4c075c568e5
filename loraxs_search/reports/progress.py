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
    """Return `running`, `finished` or `interrupted`, by the lock that a driver on this machine holds while it lives."""
    if folder.is_running():
        return "running"
    return "finished" if folder.candidates() is not None else "interrupted"


def state_and_place(folder: StudyFolder) -> tuple[str, str]:
    """Return a study's state, and where its driver may be if not on this machine.

    A study that is copied to a storage may go on with a driver on another machine, of which this folder knows nothing.
    The storage is asked once: where a driver elsewhere holds it and has not said that it ended, the state is
    `elsewhere`. It may have been killed: only who waits for a sign of life knows, as `resume` does.

    Returns:
        The state, and the name of that machine; empty where it is this one or none.
    """
    state = study_state(folder)
    if state != "interrupted" or folder.info.storage is None:
        return state, ""
    from loraxs_search.studies import holder_elsewhere

    host = holder_elsewhere(folder.info.storage, folder.name)
    return ("elsewhere", host) if host else (state, "")
