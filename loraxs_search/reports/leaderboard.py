"""The trials of a study, best first, and what their scores show is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from loraxs_search.records.codec import Scalar, sign_of
from loraxs_search.records.search import Baseline, Candidate, CheckpointSelection
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialRecord, TrialReport, TrialState

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
    complete = sorted((each for each in records if each.state is TrialState.COMPLETE), key=lambda each: each.trial_id)
    kept = {record.trial_id: selection.select(record.reports) for record in complete}
    sign, metric = sign_of(selection.direction), selection.metric
    points = {name: (sign * it.metrics[metric], it.size.stored_bytes) for name, it in kept.items()}
    return pareto_front(complete, lambda record: points[record.trial_id])


def shown_baselines(baselines: Iterable[Baseline] | None, *, finished: bool) -> list[Baseline]:
    """Return baselines without their test metrics until the search has chosen: nobody is to choose by these.

    Args:
        baselines: None while they are not known.
        finished: Whether the search has ended.
    """
    return [baseline if finished else replace(baseline, test_metrics={}) for baseline in baselines or ()]


_ORDER = [TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED, TrialState.FAIL]


@dataclass(frozen=True)
class _Column:
    """How tables show a field of `LeaderboardRow`.

    Args:
        name: The heading; `{searched}` is what trials are compared by, `{metric}` the task's metric.
        digits: Of fractions.
        is_number: Whether it stands at the right.
        is_optional: Whether it is left out where no row has a value.
        is_wide: Whether only a page has room for it.
        is_live: Whether views of a running search have it too.
    """

    name: str
    digits: int = 4
    is_number: bool = True
    is_optional: bool = False
    is_wide: bool = False
    is_live: bool = False


def _column(name: str, **look: Any) -> Mapping[str, _Column]:
    return {"column": _Column(name, **look)}


@dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """One trial as people compare it: its fields, in this order, are the columns of every table, CSV and pandas too.

    Args:
        state: `INTERRUPTED` where nobody works on the study; else Optuna's. A baseline among them is a `BASELINE`.
        kept_step: The step that the adapter is of, where the study keeps the best one.
        score: Validation value of what trials are compared by: of the report of the step that is kept, and of the last
            one of a trial that has not trained all its steps. None before the first report.
        candidate_score: The task's metric on all validation rows, where the trial is a candidate.
        test_score: The task's metric on the test split, for the trial that the finalist is of.
        unparsed: Where answers were written, the share of validation rows in which none was found: a candidate's, or
            before there is one the report's that `score` is of.
        unended: The share that the bound on new tokens ended.
        calibration_error: Where answers have a probability, how far it is from the share that is right, on the same
            rows.
        stored_bytes: Bytes of R **and** head as stored.
        without_projection: Of `stored_bytes` those that no seed gives back; None if all are such.
        device_s: Its share of a device's time up to the last report.
        wall_s: Wall time from start to end, less what no driver was at work; None while it has not ended.
        lineage: The trial of this study whose params it was added with.
        finalist: The adapter that `test_score` is of: the trial's own id, or that of a refit; empty without one.
    """

    trial_id: str = field(default="", metadata=_column("trial", is_number=False, is_live=True))
    state: TrialState | Literal["INTERRUPTED", "BASELINE"] = field(
        default=TrialState.RUNNING, metadata=_column("state", is_number=False, is_live=True)
    )
    step: int | None = field(default=None, metadata=_column("step", is_live=True))
    kept_step: int | None = field(default=None, metadata=_column("kept", is_optional=True))
    score: float | None = field(default=None, metadata=_column("{searched}", is_live=True))
    candidate_score: float | None = field(default=None, metadata=_column("validation {metric}", is_optional=True))
    test_score: float | None = field(default=None, metadata=_column("test {metric}"))
    unparsed: float | None = field(default=None, metadata=_column("unparsed", is_optional=True))
    unended: float | None = field(default=None, metadata=_column("unended", is_optional=True))
    calibration_error: float | None = field(
        default=None, metadata=_column("calibration error", is_optional=True, is_wide=True)
    )
    r_parameters: int | None = field(default=None, metadata=_column("R"))
    stored_bytes: int | None = field(default=None, metadata=_column("bytes", is_live=True))
    without_projection: int | None = field(default=None, metadata=_column("learnt bytes", is_optional=True))
    device_s: float = field(default=0.0, metadata=_column("device s", digits=1))
    wall_s: float | None = field(default=None, metadata=_column("wall s", digits=1))
    lineage: str = field(default="", metadata=_column("from", is_number=False, is_optional=True))
    reason: str = field(default="", metadata=_column("reason", is_number=False, is_optional=True, is_wide=True))
    finalist: str = ""
    params: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class _LeaderboardTable:
    """Rows as texts.

    Args:
        right: Columns of numbers.
        alike: Params that all trials have alike, which have no column.
    """

    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    right: frozenset[str]
    alike: Mapping[str, Scalar]


def leaderboard_table(
    rows: Sequence[LeaderboardRow],
    task: Task,
    baselines: Iterable[Baseline] = (),
    *,
    is_page: bool = False,
) -> _LeaderboardTable:
    """Return trials and baselines with a column for each field that the study has, and each param that varies.

    Of several methods, what each trains is not only R.

    Args:
        is_page: Whether there is room for all columns; thousands are set apart, and what has no value is empty.
    """
    shown = [*rows]
    for baseline in baselines:
        own = baseline.validation_metrics
        shown.append(
            LeaderboardRow(
                trial_id=baseline.name,
                state="BASELINE",
                score=own.get(task.search_metric),
                candidate_score=own.get(task.metric),
                test_score=baseline.test_metrics.get(task.metric),
                unparsed=own.get("unparsed"),
                unended=own.get("unended"),
                device_s=baseline.seconds,
            )
        )
    params = dict.fromkeys(name for row in rows for name in row.params)
    varying = [name for name in params if len({row.params.get(name) for row in rows}) > 1]
    columns, right = dict[str, list[str]](), set[str]()
    for each in fields(LeaderboardRow):
        look: _Column | None = each.metadata.get("column")
        if look is None or (look.is_wide and not is_page):
            continue
        if each.name == "candidate_score" and task.report_metric is None and not is_page:
            continue  # the same metric twice
        values = [getattr(row, each.name) for row in shown]
        if each.name == "reason":
            values = ["" if row.state is TrialState.COMPLETE else row.reason for row in shown]
        if look.is_optional and not any(value not in (None, "") for value in values):
            continue
        name = look.name.format(searched=task.search_metric, metric=task.metric)
        name = "parameters" if each.name == "r_parameters" and "method" in varying else name
        columns[name] = [value_cell(value, look.digits, is_page=is_page) for value in values]
        right |= {name} if look.is_number else set()
        if each.name == "test_score":  # a refit may be the finalist
            others = [f" ({row.finalist})" if row.finalist not in ("", row.trial_id) else "" for row in shown]
            columns[name] = [cell + other for cell, other in zip(columns[name], others, strict=True)]
    right |= set(varying)
    for name in varying:  # baselines have none
        cells = [value_cell(row.params.get(name), is_page=is_page) for row in rows]
        columns[name] = [*cells, *[""] * (len(shown) - len(rows))]
    alike = {name: rows[0].params[name] for name in params if name not in varying and name in rows[0].params}
    return _LeaderboardTable(tuple(columns), tuple(zip(*columns.values(), strict=True)), frozenset(right), alike)


def live_columns(rows: Sequence[LeaderboardRow], searched: str) -> dict[str, list[str]]:
    """Return the columns that views of a running search have, by heading.

    Args:
        searched: What trials are compared by.
    """
    looks = {each.name: each.metadata["column"] for each in fields(LeaderboardRow) if "column" in each.metadata}
    return {
        look.name.format(searched=searched): [
            value_cell(getattr(row, name), look.digits, is_page=True) or "-" for row in rows
        ]
        for name, look in looks.items()
        if look.is_live
    }


def value_cell(value: Any, digits: int | None = None, *, is_page: bool = False) -> str:
    """Return a value as tables show it; without `digits`, as of params, fractions have four that matter."""
    if value is None or value == "":
        return "" if is_page else "-"
    if isinstance(value, float):
        return f"{value:.4g}" if digits is None else f"{value:,.{digits}f}" if is_page else f"{value:.{digits}f}"
    if isinstance(value, int) and digits is not None and is_page:
        return f"{value:,}"
    return str(value)


def row_of(record: TrialRecord, metric: str, kept: TrialReport | None = None) -> LeaderboardRow:
    """Return the row of a trial by its own reports.

    Args:
        metric: What trials are compared by.
        kept: The report of the step that its adapter is of; the last one by default.
    """
    last = record.reports[-1] if record.reports else None
    shown = kept or last
    return LeaderboardRow(
        trial_id=record.trial_id,
        state=record.state,
        step=record.step,
        score=shown.metrics.get(metric) if shown else None,
        unparsed=shown.metrics.get("unparsed") if shown else None,
        unended=shown.metrics.get("unended") if shown else None,
        calibration_error=shown.metrics.get("calibration_error") if shown else None,
        r_parameters=last.size.r_parameters if last else None,
        stored_bytes=last.size.stored_bytes if last else None,
        without_projection=last.size.without_projection if last else None,
        device_s=last.device_s if last else 0.0,
        wall_s=record.worked_s,
        lineage=record.lineage,
        reason=record.reason,
        params=record.params,
    )


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
    from loraxs_search.registry.finalist import trial_of  # late: it costs as much as all of `status`

    scored = {c.trial_id: c for c in candidates}
    tested = {trial_of(c.trial_id): c for c in scored.values() if c.test_metrics}
    rule = CheckpointSelection(task.search_metric, task.search_direction, checkpoint)
    rows = []
    for record in records:
        candidate, finalist = scored.get(record.trial_id), tested.get(record.trial_id)
        validation = candidate.validation_metrics if candidate else {}
        kept = rule.select(record.reports) if record.state is TrialState.COMPLETE else None
        row = row_of(record, rule.metric, kept)
        rows.append(
            replace(
                row,
                kept_step=kept.step if kept and checkpoint == "best" else None,
                candidate_score=validation.get(task.metric),
                test_score=finalist.test_metrics.get(task.metric) if finalist else None,
                unparsed=validation.get("unparsed") if validation else row.unparsed,
                unended=validation.get("unended") if validation else row.unended,
                calibration_error=validation.get("calibration_error") if validation else row.calibration_error,
                finalist=finalist.trial_id if finalist else "",
            )
        )
    sign = sign_of(task.search_direction)
    scores = {row.trial_id: math.inf if row.score is None else -sign * row.score for row in rows}
    return sorted(rows, key=lambda row: (_ORDER.index(TrialState(row.state)), scores[row.trial_id], row.trial_id))


def score_warnings(rows: Sequence[LeaderboardRow], task: Task) -> list[str]:
    """Return a sentence for each such thing; see `TaskKind.score_warnings`.

    Args:
        rows: The leaderboard. The best candidate says it, and before there is one the best trial.
    """
    from loraxs_search.tasks.kinds import kind_of  # numpy, which a list of studies does without

    sign = sign_of(task.direction)
    candidates = [row for row in rows if row.candidate_score is not None]
    best = next((row for row in rows if row.score is not None), None)
    best = max(candidates, key=lambda row: sign * (row.candidate_score or 0.0), default=best)
    if best is None:
        return []
    shares = {"unparsed": best.unparsed, "unended": best.unended}
    known = {name: share for name, share in shares.items() if share is not None}
    return [f"trial {best.trial_id}: {sentence}" for sentence in kind_of(task).score_warnings(known)]
