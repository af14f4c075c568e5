"""Work that any host can do, item by item, mapped over all hosts of a pool: refits, scores, answers, adapter files.

Refits train the candidates' recipes again from fresh seeds: hosts that pack advance them in the same rounds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from loraxs_search.errors import ClusterError, HomeError, LoraxsError, StudyError, TaskDataError, TrialDivergedError
from loraxs_search.records.adapter import NUM_WRONG_ROWS, ClassReport, ClassScores
from loraxs_search.records.base import Identity
from loraxs_search.records.host import Answers
from loraxs_search.records.literals import Split
from loraxs_search.records.promotion import Refit, SliceScore
from loraxs_search.records.task import Task
from loraxs_search.records.trial import AdapterSize, Lineage, TrialReport, TrialSpec
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.search.hosts.answers import HOST_LOST
from loraxs_search.search.hosts.pool import HostPool, HostProxy
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.snapshots import read_reports

_MAX_LOST_HOSTS = 3

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class WorkItem(Generic[AnswerT]):
    """One item of work; it keeps its own results, so that a killed driver finds what was done.

    Args:
        ask: Starts it on a host. May be repeated, on another host.
        take: Keeps a host's answer; returns whether there is more to do.
        failed: Records that it failed, or raises where that must end the search.
    """

    ask: Callable[[HostProxy], ObjectRef[AnswerT]]
    take: Callable[[AnswerT], bool | None]
    failed: Callable[[Exception], None]


def map_over_hosts(
    pool: HostPool,
    items: Sequence[WorkItem[Any]],
    on_loop_step: Callable[[], None],
    *,
    at_once: int = 1,
    finished: Callable[[int], None] = lambda _: None,
) -> None:
    """Have every item done, `at_once` on each host at a time.

    An item whose host died goes to another host.

    Args:
        pool: Not asked where there is nothing to do.
        on_loop_step: Called several times a second; raises when the search was stopped from outside.
        at_once: More than 1 where items share passes.
        finished: Called with how many items are done, after each.
    Raises:
        RayError: hosts keep dying; one of `HOST_LOST`.
        ClusterError, HomeError: a node is not fit for the search, or its disk is full.
    """
    waiting, pending = deque(items), dict[ObjectRef[Any], tuple[WorkItem[Any], HostProxy]]()
    losses_left, hosts = _MAX_LOST_HOSTS * len(items), pool.hosts() if items else []
    num_done = 0

    def go_on(item: WorkItem[Any], host: HostProxy) -> None:
        pending[item.ask(host)] = item, host

    for host in [host for _ in range(at_once) for host in hosts]:
        if waiting:
            go_on(waiting.popleft(), host)
    while pending:
        on_loop_step()
        done, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
        for answer in done:
            item, host = pending.pop(answer)
            try:
                if item.take(ray.get(answer)):
                    go_on(item, host)
                    continue
            except HOST_LOST:
                losses_left -= 1
                if losses_left < 0:
                    raise
                go_on(item, pool.host(lost=host))
                continue
            except (ClusterError, HomeError):  # a node's fault, not the item's
                raise
            except (LoraxsError, RayTaskError) as error:
                item.failed(error)
            num_done += 1
            finished(num_done)
            if waiting:
                go_on(waiting.popleft(), host)


def reason_of(error: Exception) -> str:
    """Return what went wrong on a host, as text for display."""
    if isinstance(error, LoraxsError):
        return error.message
    return f"{type(error.cause).__name__}: {error.cause}" if isinstance(error, RayTaskError) else str(error)


_SEED_STRIDE = 1 << 32  # the seeds of a study's trials lie closer together than that


def refit_spec(spec: TrialSpec, number: int) -> TrialSpec:
    """Return the recipe of a trial with its `number`-th fresh seed, 1 for the first."""
    hyper = replace(spec.hyperparameters, seed=spec.hyperparameters.seed + number * _SEED_STRIDE)
    return replace(spec, trial_id=f"{spec.trial_id}.{number}", hyperparameters=hyper)


def refit_work(
    spec: TrialSpec,
    task: Task,
    every: int,
    folder: StudyFolder,
    reached: Callable[[str, int], None] = lambda _, __: None,
    is_late: Callable[[], bool] = lambda: False,
) -> WorkItem[tuple[TrialReport, bytes]]:
    """Train a recipe to its last step, and keep its state after every `every` steps.

    Args:
        reached: Called with its name and the step that it has reached; one that failed has no more to do.
        is_late: Whether there is no more time: it is left out then.
    """
    name, max_steps, confirmed = spec.trial_id, spec.hyperparameters.max_steps, folder.confirmations()

    def ended(metrics: Mapping[str, float], failed: str = "") -> None:
        confirmed.write_refit(name, Refit(spec.hyperparameters.seed, metrics, failed=failed))

    def ask(host: HostProxy) -> ObjectRef[tuple[TrialReport, bytes]]:
        snapshot = folder.snapshots.read(name)
        step = read_reports(snapshot)[-1].step if snapshot else 0
        return host.advance.remote(spec, min(step + every, max_steps), snapshot, task)

    def take(answer: tuple[TrialReport, bytes]) -> bool:
        report, snapshot = answer
        folder.snapshots.write(name, snapshot)
        reached(name, report.step)
        if report.step < max_steps:
            return not is_late()
        ended(folder.checkpoint_selection.select(read_reports(snapshot)).metrics)
        return False

    def failed(error: Exception) -> None:
        ended({}, reason_of(error))
        reached(name, max_steps)

    return WorkItem(ask, take, failed)


_BOTH = ("predictions", "labels")
_PART = 128  # rows; an item of fewer takes as long, since it puts the adapter on the base


@dataclass(frozen=True)
class Trained:
    """An adapter that has trained all its steps: a trial's, or a refit's.

    Args:
        validation_metrics: Of the report of the step that is kept.
        lineage: The trial whose params its recipe was added with.
    """

    spec: TrialSpec
    folder: StudyFolder
    validation_metrics: Mapping[str, float]
    size: AdapterSize
    lineage: Lineage | None = None

    @property
    def trial_id(self) -> str:
        return self.spec.trial_id

    @property
    def kept_step(self) -> int | None:
        """The step that it is of, where the study keeps the best one."""
        return None if self.folder.checkpoint_selection.checkpoint == "last" else read_reports(self.snapshot())[-1].step

    def snapshot(self) -> bytes:
        """Return the state that is kept: its last one, or the best.

        Raises:
            StudyError: the snapshot is missing.
        """
        snapshot = self.folder.snapshots.read_kept(self.trial_id)
        if snapshot is None:
            raise StudyError(
                f"A completed trial must have a snapshot, but {self.folder.path} has none of {self.trial_id}."
            )
        return snapshot


def raised(error: Exception) -> None:
    """Raise what an item has failed with."""
    raise error


def _or_diverged(record: Callable[[], None]) -> Callable[[Exception], None]:
    """Return what records that an adapter has no finite score, which is a result, and raises any other error."""

    def failed(error: Exception) -> None:
        record() if isinstance(error, TrialDivergedError) else raised(error)

    return failed


def validation_work(trained: Trained, task: Task) -> WorkItem[tuple[TrialReport, bytes]]:
    """Score an adapter on all validation rows, in the passes that score trials."""
    confirmed, name = trained.folder.confirmations(), trained.trial_id

    def ask(host: HostProxy) -> ObjectRef[tuple[TrialReport, bytes]]:
        snapshot = trained.snapshot()
        step = read_reports(snapshot)[-1].step  # a trial that is at its step already is scored without training
        return host.advance.remote(trained.spec, step, snapshot, task.for_candidates)

    return WorkItem(
        ask,
        lambda answer: confirmed.write_validation(name, answer[0].metrics),
        _or_diverged(lambda: confirmed.write_validation(name, {})),
    )


def answer_work(trained: Trained, rows: range, task: Task) -> WorkItem[Answers]:
    """Have some test rows answered by the finalist."""
    confirmed, name = trained.folder.confirmations(), trained.trial_id
    return WorkItem(
        lambda host: host.answer.remote(trained.spec, trained.snapshot(), rows, task.for_candidates),
        lambda answers: confirmed.write_answers(name, rows, answers),
        _or_diverged(lambda: confirmed.write_answers(name, rows, Answers((), (), math.nan))),
    )


def base_answer_work(
    folder: StudyFolder, identity: Identity, task: Task, split: Split, rows: range, shots: int
) -> WorkItem[Answers]:
    """Have some rows of a split answered by the untouched base; once that has failed, the rest is not asked."""
    confirmed = folder.confirmations()

    def failed(error: Exception) -> None:
        """Keep the reason: a baseline stops no search. Worked examples may not fit, which no second try changes."""
        applies = not (shots and isinstance(error, TaskDataError))
        confirmed.write_base_failure(shots, reason_of(error), applies=applies)

    return WorkItem(
        lambda host: host.answer_without_adapter.remote(identity, split, rows, shots, task.for_candidates),
        lambda answers: confirmed.write_base_answers(shots, split, rows, answers),
        failed,
    )


def row_parts(num_rows: int, done: Sequence[range]) -> list[range]:
    """Return the unanswered rows of a split, in parts that are small enough to show how far the work is."""
    ends = sorted(done, key=lambda rows: rows.start)
    starts = [0, *(rows.stop for rows in ends)]
    stops = [*(rows.start for rows in ends), num_rows]
    gaps = [range(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]
    return [part for gap in gaps for part in in_parts(gap, _PART)]


def in_parts(rows: range, size: int) -> list[range]:
    """Return rows in parts of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def joined(parts: Sequence[Answers], task: Task) -> tuple[dict[str, float], ScoredRows]:
    """Return the metrics and the rows that consecutive answers make up; not finite where some answers are not."""
    from loraxs_search.tasks.kinds import RowScores, kind_of

    columns = {name: _column(parts, name) for name in ("losses", "counts", "correct", "ended")}
    predictions, labels = ([value for part in parts for value in getattr(part, name)] for name in _BOTH)
    names = [name for name in task.slices if all(name in part.slices for part in parts)]
    slices = {name: [value for part in parts for value in part.slices[name]] for name in names}
    sums: dict[str, Any] = {name: columns[name] for name in ("losses", "counts", "correct")}
    rows = ScoredRows.of(predictions, labels, **sums, slices=slices)
    if not all(part.predictions for part in parts):
        return dict.fromkeys((*task.metrics, "loss"), math.nan), rows
    if columns["losses"] is None:  # sums of parts do as well as those of rows
        counts = [len(part.labels) if part.loss_count is None else part.loss_count for part in parts]
        columns |= {"losses": [part.loss for part in parts], "counts": counts}
    arrays: dict[str, Any] = {name: None if values is None else np.asarray(values) for name, values in columns.items()}
    return kind_of(task).measure_scores(RowScores(rows.predictions, **arrays), rows.labels), rows


def slices_of(parts: Sequence[Answers], task: Task) -> tuple[SliceScore, ...]:
    """Return the task's metric on each slice of the rows that answers are to."""
    from loraxs_search.registry.evidence import slice_scores
    from loraxs_search.tasks.kinds import kind_of

    if not task.slices or not all(part.predictions for part in parts):
        return ()
    return slice_scores(kind_of(task).metrics[task.metric], 1.0, joined(parts, task)[1])  # no champion, no sign


def class_report(parts: Sequence[Answers], task: Task) -> ClassReport | None:
    """Return how a classifier's answers to all test rows do by class; None if answers are not labels."""
    answers, labels = (np.array([value for part in parts for value in getattr(part, name)]) for name in _BOTH)
    if not task.labels or labels.dtype.kind != "i" or len(answers) != len(labels):
        return None
    count = len(task.labels)
    confusion = np.bincount(labels * count + answers, minlength=count * count).reshape(count, count)
    right, answered, rows = confusion.diagonal().tolist(), confusion.sum(0).tolist(), confusion.sum(1).tolist()

    def share(part: int, whole: int) -> float | None:
        return float(part / whole) if whole else None

    classes = [
        ClassScores(label, n, share(k, m), share(k, n), share(2 * k, n + m))
        for label, k, m, n in zip(task.labels, right, answered, rows, strict=True)
    ]
    wrong = [sample for part in parts for sample in part.wrong][:NUM_WRONG_ROWS]
    return ClassReport(tuple(classes), tuple(map(tuple, confusion.tolist())), tuple(wrong))


def _column(parts: Sequence[Answers], name: str) -> list[Any] | None:
    """Return a column of all rows; None if some part has none."""
    columns = [getattr(part, name) for part in parts]
    return None if any(column is None for column in columns) else [value for column in columns for value in column]
