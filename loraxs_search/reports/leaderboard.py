"""The trials of a study, best first, and what their scores show is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from loraxs_search.records.literals import Scalar
from loraxs_search.records.promotion import Baseline, Candidate
from loraxs_search.records.search import CheckpointSelection
from loraxs_search.records.task import Task
from loraxs_search.records.trial import Lineage, TrialRecord, TrialState

ItemT = TypeVar("ItemT")


def pareto_front(items: Iterable[ItemT], point: Callable[[ItemT], tuple[float, int]]) -> list[ItemT]:
    """Return the items that no other beats in score and bytes together, fewest bytes first; equal ones all.

    Args:
        point: Returns an item's score, turned so that more is better, and its bytes.
    """
    front, best = list[ItemT](), -math.inf
    for item in sorted(items, key=lambda item: (point(item)[1], -point(item)[0])):
        score = point(item)[0]
        if score > best or (front and point(item) == point(front[-1])):
            front.append(item)
            best = score
    return front


def front(records: Iterable[TrialRecord], selection: CheckpointSelection) -> list[TrialRecord]:
    """Return the complete trials that no other one beats in score and stored bytes together, fewest bytes first.

    Of trials that were stopped nothing is kept that could be used, and their scores are of fewer steps.
    """
    sign = 1.0 if selection.direction == "maximize" else -1.0

    def point(record: TrialRecord) -> tuple[float, int]:
        kept = selection.select(record.reports)
        return sign * kept.metrics[selection.metric], kept.size.stored_bytes

    complete = (record for record in records if record.state is TrialState.COMPLETE)
    return pareto_front(sorted(complete, key=lambda record: record.trial_id), point)


def shown_baselines(baselines: Iterable[Baseline] | None, *, finished: bool) -> list[Baseline]:
    """Return baselines without their test metrics until the search has chosen: nobody is to choose by these.

    Args:
        baselines: None while they are not known.
        finished: Whether the search has ended.
    """
    return [baseline if finished else replace(baseline, test_metrics={}) for baseline in baselines or ()]


# Of trials that have not ended, of a study that nobody works on.
INTERRUPTED: Literal["INTERRUPTED"] = "INTERRUPTED"
_ORDER = [TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED, TrialState.FAIL]


@dataclass(frozen=True)
class LeaderboardRow:
    """One trial as people compare it.

    Args:
        state: `INTERRUPTED` where nobody works on the study; else Optuna's.
        score: Validation value of what trials are compared by: of the report of the step that is kept, and of the last
            one of a trial that has not trained all its steps. None before the first report.
        test_score: The task's metric on the test split, for the trial that the finalist is of.
        device_s: Its share of a device's time up to the last report.
        wall_s: Wall time from start to end, less what no driver was at work; None while it has not ended.
        stored_bytes: Bytes of R **and** head as stored.
        finalist: The adapter that `test_score` is of: the trial's own id, or that of a refit; empty without one.
        candidate_score: The task's metric on all validation rows, where the trial is a candidate.
        kept_step: The step that the adapter is of, where the study keeps the best one.
        unparsed: Where answers were written, the share of validation rows in which none was found: a candidate's, or
            before there is one the report's that `score` is of.
        unended: The share that the bound on new tokens ended.
        without_projection: Of `stored_bytes` those that no seed gives back; None if all are such.
        lineage: The trial of this study whose params it was added with.
    """

    trial_id: str
    state: TrialState | Literal["INTERRUPTED"]
    step: int
    score: float | None
    test_score: float | None
    r_parameters: int | None
    stored_bytes: int | None
    device_s: float
    wall_s: float | None
    params: Mapping[str, Scalar]
    reason: str
    finalist: str = ""
    candidate_score: float | None = None
    kept_step: int | None = None
    unparsed: float | None = None
    unended: float | None = None
    without_projection: int | None = None
    lineage: Lineage | None = None

    @property
    def origin(self) -> str:
        """The trial of this study that the params are from, with the step of its state; or empty."""
        if self.lineage is None:
            return ""
        return self.lineage.trial_id


def leaderboard(
    records: Iterable[TrialRecord],
    task: Task,
    candidates: Iterable[Candidate] = (),
    checkpoint: Literal["last", "best"] = "last",
) -> list[LeaderboardRow]:
    """Return a row a trial: completed first, each group by validation score, then by id.

    Args:
        checkpoint: Which step of a trial its adapter is of, as `SearchPlan` has it.
    """
    records = tuple(records)
    scored = {c.trial_id: c for c in candidates}
    from loraxs_search.registry.finalist import trial_of  # late: it costs as much as all of `status`

    tested = {trial_of(c.trial_id): c for c in scored.values() if c.test_metrics}
    rule = CheckpointSelection(task.search_metric, task.search_direction, checkpoint)
    rows = [_row(r, task, rule, scored.get(r.trial_id), tested.get(r.trial_id)) for r in records]
    sign = -1.0 if task.search_direction == "maximize" else 1.0

    def key(row: LeaderboardRow) -> tuple[int, float, str]:
        return _ORDER.index(TrialState(row.state)), math.inf if row.score is None else sign * row.score, row.trial_id

    return sorted(rows, key=key)


def interrupted(rows: Iterable[LeaderboardRow]) -> list[LeaderboardRow]:
    """Return rows of a study that nobody works on: what has not ended waits for `resume`, and does not run."""
    return [replace(row, state=INTERRUPTED) if row.state is TrialState.RUNNING else row for row in rows]


def _row(
    record: TrialRecord, task: Task, rule: CheckpointSelection, candidate: Candidate | None, finalist: Candidate | None
) -> LeaderboardRow:
    validation = candidate.validation_metrics if candidate else {}
    last = kept = record.reports[-1] if record.reports else None
    if record.state is TrialState.COMPLETE:
        kept = rule.select(record.reports)
    written = validation or (kept.metrics if kept else {})
    return LeaderboardRow(
        trial_id=record.trial_id,
        state=record.state,
        step=last.step if last else 0,
        score=kept.metrics[rule.metric] if kept else None,
        test_score=finalist.test_metrics.get(task.metric) if finalist else None,
        r_parameters=last.size.r_parameters if last else None,
        stored_bytes=last.size.stored_bytes if last else None,
        device_s=last.device_s if last else 0.0,
        wall_s=record.worked_s,
        params=record.params,
        reason=record.reason,
        finalist=finalist.trial_id if finalist else "",
        candidate_score=validation.get(task.metric),
        kept_step=kept.step if kept and rule.checkpoint == "best" and record.state is TrialState.COMPLETE else None,
        unparsed=written.get("unparsed"),
        unended=written.get("unended"),
        without_projection=last.size.without_projection if last else None,
        lineage=record.lineage,
    )


def score_warnings(rows: Sequence[LeaderboardRow], task: Task) -> list[str]:
    """Return a sentence for each such thing; see `TaskKind.score_warnings`.

    Args:
        rows: The leaderboard. The best candidate says it, and before there is one the best trial.
    """
    from loraxs_search.tasks.kinds import kind_of  # numpy, which a list of studies does without

    best = _best(rows, task)
    if best is None:
        return []
    shares = {"unparsed": best.unparsed, "unended": best.unended}
    known = {name: share for name, share in shares.items() if share is not None}
    return [f"trial {best.trial_id}: {sentence}" for _, sentence in kind_of(task).score_warnings(known)]


def _best(rows: Sequence[LeaderboardRow], task: Task) -> LeaderboardRow | None:
    candidates = [row for row in rows if row.candidate_score is not None]
    sign = 1.0 if task.direction == "maximize" else -1.0
    if candidates:
        return max(candidates, key=lambda row: sign * (row.candidate_score or 0.0))
    return next((row for row in rows if row.score is not None), None)
