"""The trials of a study, best first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from loraxs_search.records import Candidate, Scalar, Task, TrialRecord, TrialState
from loraxs_search.registry import trial_of

_ORDER = [TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED, TrialState.FAIL]


@dataclass(frozen=True)
class LeaderboardRow:
    """One trial as people compare it.

    Args:
        score: Last validation value of the task's metric; None before the first report.
        test_score: Value on the test split, for the trial that the finalist is of.
        seconds: Wall time from start to end, or to the last report's device time while running.
        stored_bytes: Bytes of R **and** head as stored.
        finalist: The adapter that `test_score` is of: the trial's own id, or that of a refit; empty without one.
    """

    trial_id: str
    state: TrialState
    step: int
    score: float | None
    test_score: float | None
    r_parameters: int | None
    stored_bytes: int | None
    seconds: float
    params: Mapping[str, Scalar]
    reason: str
    finalist: str = ""


def leaderboard(
    records: Iterable[TrialRecord], task: Task, candidates: Iterable[Candidate] = ()
) -> list[LeaderboardRow]:
    """Return a row a trial: completed first, each group by validation score, then by id."""
    tested = {trial_of(c.trial_id): c for c in candidates if c.test_metrics}
    rows = [_row(record, task, tested.get(record.trial_id)) for record in records]
    sign = -1.0 if task.direction == "maximize" else 1.0

    def key(row: LeaderboardRow) -> tuple[int, float, str]:
        return _ORDER.index(row.state), math.inf if row.score is None else sign * row.score, row.trial_id

    return sorted(rows, key=key)


def _row(record: TrialRecord, task: Task, finalist: Candidate | None) -> LeaderboardRow:
    last = record.reports[-1] if record.reports else None
    ended = record.ended_at is not None
    return LeaderboardRow(
        trial_id=record.trial_id,
        state=record.state,
        step=last.step if last else 0,
        score=last.metrics[task.metric] if last else None,
        test_score=finalist.test_metrics.get(task.metric) if finalist else None,
        r_parameters=last.size.r_parameters if last else None,
        stored_bytes=last.size.stored_bytes if last else None,
        seconds=(record.ended_at or 0.0) - record.started_at if ended else (last.device_s if last else 0.0),
        params=record.params,
        reason=record.reason,
        finalist=finalist.trial_id if finalist else "",
    )
