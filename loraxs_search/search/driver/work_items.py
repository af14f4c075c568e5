"""Work that any host can do, item by item, mapped over all hosts of a pool; the baselines of a study are such work.

Refits train the candidates' recipes again from fresh seeds: hosts that pack advance them in the same rounds. They do
not go through Ray Tune, as nothing proposes or stops them and no log has their reports: they are spread over the hosts
as scores, answers and adapter files are.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from loraxs_search.errors import (
    ClusterError,
    HomeError,
    LoraxsError,
    StudyError,
    TaskDataError,
    TrialDivergedError,
    first_line,
)
from loraxs_search.home import write_atomic
from loraxs_search.records.adapter import NUM_WRONG_ROWS, ClassReport, ClassScores
from loraxs_search.records.host import Answers
from loraxs_search.records.literals import Split, sign_of
from loraxs_search.records.promotion import (
    BASE_MODEL_ROWS,
    Baseline,
    Refit,
    SliceScore,
    is_unmeasured,
    is_untouched,
    shots_name,
)
from loraxs_search.records.task import Task
from loraxs_search.records.trial import AdapterSize, Lineage, TrialReport, TrialSpec
from loraxs_search.registry.evidence import ScoredRows, slice_scores
from loraxs_search.search.hosts.answers import HOST_LOST, await_answer
from loraxs_search.search.hosts.pool import HostPool, HostProxy
from loraxs_search.search.hosts.study_actors import StudyActors
from loraxs_search.studies.confirmations import BaseFailure
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.snapshots import read_reports

_MAX_LOST_HOSTS = 3
_logger = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")


def _raised(error: Exception) -> None:
    raise error


@dataclass(frozen=True)
class WorkItem(Generic[AnswerT]):
    """One item of work; it keeps its own results, so that a killed driver finds what was done.

    Args:
        ask: Starts it on a host. May be repeated, on another host.
        take: Keeps a host's answer; returns whether there is more to do.
        failed: Records that it failed, or raises where that must end the search, as any error does by default.
    """

    ask: Callable[[HostProxy], ObjectRef[AnswerT]]
    take: Callable[[AnswerT], bool | None]
    failed: Callable[[Exception], None] = _raised


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
    reached: Callable[[dict[str, int]], None] = lambda _: None,
    is_late: Callable[[], bool] = lambda: False,
) -> WorkItem[tuple[TrialReport, bytes]]:
    """Train a recipe to its last step, and keep its state after every `every` steps.

    Args:
        reached: Called with the step that it has reached, by its name; one that failed has no more to do.
        is_late: Whether there is no more time: it is left out then.
    """
    name, max_steps, confirmed = spec.trial_id, spec.hyperparameters.max_steps, folder.confirmed

    def ended(metrics: Mapping[str, float], failed: str = "") -> None:
        confirmed.refit(name).write(Refit(spec.hyperparameters.seed, metrics, failed=failed))

    def ask(host: HostProxy) -> ObjectRef[tuple[TrialReport, bytes]]:
        snapshot = folder.snapshots.read(name)
        step = read_reports(snapshot)[-1].step if snapshot else 0
        return host.advance.remote(spec, min(step + every, max_steps), snapshot, task)

    def take(answer: tuple[TrialReport, bytes]) -> bool:
        report, snapshot = answer
        folder.snapshots.write(name, snapshot)
        reached({name: report.step})
        if report.step < max_steps:
            return not is_late()
        ended(folder.checkpoint_selection.select(read_reports(snapshot)).metrics)
        return False

    def failed(error: Exception) -> None:
        ended({}, reason_of(error))
        reached({name: max_steps})

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
    def kept_step(self) -> int | None:
        """The step that it is of, where the study keeps the best one."""
        return None if self.folder.checkpoint_selection.checkpoint == "last" else read_reports(self.snapshot())[-1].step

    def snapshot(self) -> bytes:
        """Return the state that is kept: its last one, or the best.

        Raises:
            StudyError: the snapshot is missing.
        """
        snapshot = self.folder.snapshots.read_kept(self.spec.trial_id)
        if snapshot is None:
            raise StudyError(
                f"A completed trial must have a snapshot, but {self.folder.path} has none of {self.spec.trial_id}."
            )
        return snapshot


def validation_work(trained: Trained, task: Task) -> WorkItem[tuple[TrialReport, bytes]]:
    """Score an adapter on all validation rows, in the passes that score trials."""
    confirmed, name = trained.folder.confirmed, trained.spec.trial_id

    def ask(host: HostProxy) -> ObjectRef[tuple[TrialReport, bytes]]:
        snapshot = trained.snapshot()
        step = read_reports(snapshot)[-1].step  # a trial that is at its step already is scored without training
        return host.advance.remote(trained.spec, step, snapshot, task.for_candidates)

    def failed(error: Exception) -> None:
        if not isinstance(error, TrialDivergedError):
            raise error
        confirmed.validation(name).write({})  # that it has no finite score is a result

    return WorkItem(ask, lambda answer: confirmed.validation(name).write(dict(answer[0].metrics)), failed)


def answer_work(trained: Trained, rows: range, task: Task) -> WorkItem[Answers]:
    """Have some test rows answered by the finalist."""
    confirmed, name = trained.folder.confirmed, trained.spec.trial_id

    def failed(error: Exception) -> None:
        if not isinstance(error, TrialDivergedError):
            raise error
        confirmed.write_answers(name, rows, Answers((), (), math.nan))

    return WorkItem(
        lambda host: host.answer.remote(trained.spec, trained.snapshot(), rows, task.for_candidates),
        lambda answers: confirmed.write_answers(name, rows, answers),
        failed,
    )


def row_parts(num_rows: int, done: Sequence[range]) -> list[range]:
    """Return the unanswered rows of a split, in parts that are small enough to show how far the work is."""
    ends = sorted(done, key=lambda rows: rows.start)
    starts = [0, *(rows.stop for rows in ends)]
    stops = [*(rows.start for rows in ends), num_rows]
    gaps = [range(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]
    return [gap[place : place + _PART] for gap in gaps for place in range(0, len(gap), _PART)]


def joined(parts: Sequence[Answers], task: Task) -> tuple[dict[str, float], ScoredRows]:
    """Return the metrics and the rows that consecutive answers make up; not finite where some answers are not."""
    from loraxs_search.tasks.kinds import RowScores, kind_of

    def column(name: str) -> list[Any] | None:
        """Return a column of all rows; None if some part has none."""
        of_parts = [getattr(part, name) for part in parts]
        return None if any(own is None for own in of_parts) else [value for own in of_parts for value in own]

    columns = {name: column(name) for name in ("losses", "counts", "correct", "ended")}
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


class StudyBaselines:
    """Begins to measure a study's baselines on the first host, unless they are in its folder, and waits at the end.

    Those that failed are measured again; `BaseModelBaseline` measures the untouched base.
    """

    def __init__(self, folder: StudyFolder, actors: StudyActors, task: Task) -> None:
        from loraxs_search.tasks.baselines import fitting_baselines
        from loraxs_search.tasks.kinds import kind_of

        self._folder, self._actors, self._task = folder, actors, task
        self._fitting = fitting_baselines(kind_of(task))
        self._asked: ObjectRef[tuple[Baseline, ...]] | None = None
        self._known = folder.baselines() or ()  # those that are in the study folder by now: reports read no file
        kept = folder.baseline_answers()
        measured = {one.name for one in self._known if not one.failed and (one.answer is not None or one.name in kept)}
        hopeless = {one.name for one in self._known if one.failed and not one.applies}
        if set(self._fitting) - measured - hopeless:
            self._asked = actors.pool.host().baselines.remote(task)

    def take(self) -> tuple[Baseline, ...]:
        """Write those that are measured by now, and return all that are in the study folder.

        Waits for nothing, and leaves a host's fault to `result`.

        Raises:
            HomeError: the folder cannot be written.
        """
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            with contextlib.suppress(*HOST_LOST, RayTaskError):
                self._write(ray.get(self._asked))
        return self._known

    def result(self, on_loop_step: Callable[[], None]) -> tuple[Baseline, ...]:
        """Return the baselines once they are in the study folder; those that cannot be had say why.

        Args:
            on_loop_step: Called several times a second meanwhile; raises when the search was stopped from outside. A
                resumed search measures them anew.
        Raises:
            HomeError: the folder cannot be written.
        """
        if self._asked is not None:
            try:
                try:
                    measured = await_answer(self._asked, on_loop_step)
                except HomeError:
                    raise
                except (*HOST_LOST, RayTaskError):
                    measured = self._actors.pool.ask(lambda host: host.baselines.remote(self._task), on_loop_step)
                self._write(measured)
            except HomeError:  # a disk, here or on the host's node
                raise
            except (*HOST_LOST, RayTaskError) as error:
                reason = first_line(getattr(error, "cause", error))
                _logger.warning("the study's baselines cannot be measured: %s", reason)
                known = {one.name: one for one in self._known if not one.failed}
                failed = [Baseline(name, failed=reason[:200], applies=True) for name in self._fitting]
                self._write(tuple(known.get(one.name, one) for one in failed))
        return self._folder.baselines() or ()

    def _write(self, measured: tuple[Baseline, ...]) -> None:
        self._folder.write_baselines(measured)
        self._known, self._asked = self._folder.baselines() or (), None


_ASKED_ROWS = 32  # rows; a slow machine may write each for seconds, and says after each part how far it is


@dataclass(frozen=True)
class BaseModelBaseline:
    """Measures what the untouched base reaches, and keeps it among the study's baselines.

    It is the baseline of task kinds that declare `shots`. A base that writes does not stop where an adapter does, so
    asking it costs more than a search. It is asked with each number of worked examples on `BASE_MODEL_ROWS` validation
    rows, spread evenly over all of them; the best of these answers the test rows, all of them, since promotion compares
    row by row. What was answered before a kill is not asked again.

    Args:
        spread: Has items done on all hosts.
    """

    folder: StudyFolder
    actors: StudyActors
    task: Task
    spread: Callable[[Sequence[WorkItem[Answers]]], None]

    @property
    def shots(self) -> tuple[int, ...]:
        """Numbers of worked examples in its prompts; none if the kind has no baseline of the base model."""
        from loraxs_search.tasks.kinds import kind_of

        return kind_of(self.task).shots

    @property
    def is_measured(self) -> bool:
        """Whether there is no more to do; what has failed is asked again."""
        known = self.folder.baselines() or ()
        if not {shots_name(shots) for shots in self.shots} <= {each.name for each in known if not is_unmeasured(each)}:
            return False
        has_rows = self.folder.confirmed.base_rows_path.exists()
        return has_rows or all(each.failed for each in known if is_untouched(each.name))

    def seconds_per_row(self) -> float:
        """Return how long an answer takes, by the first rows, which are asked now if need be; 0 if none are."""
        if not self.shots:
            return 0.0
        if not self.folder.confirmed.answers(self.shots[0], "validation"):
            self.spread(self._work("validation", self.shots[0])[:1])
        answered = self.folder.confirmed.answers(self.shots[0], "validation").values()
        return sum(part.seconds for part in answered) / max(1, sum(len(part.labels) for part in answered))

    def measure(self) -> None:
        """Have the base answer what it has not answered yet, and write its baselines."""
        if self.is_measured:
            return
        confirmed, task = self.folder.confirmed, self.task
        for shots in self.shots:
            confirmed.base_failure(shots).path.unlink(missing_ok=True)
        self.spread([item for shots in self.shots for item in self._work("validation", shots)])
        validation = {shots: self._scored("validation", shots)[0] for shots in self.shots}
        sign = sign_of(task.direction)
        values = {shots: sign * metrics[task.metric] for shots, metrics in validation.items() if metrics}
        best, test = None, dict[str, float]()
        if values:  # none may be finite, which is a result
            best = max(values, key=lambda shots: (values[shots] if math.isfinite(values[shots]) else -math.inf, -shots))
            self.spread(self._work("test", best))
            test, rows = self._scored("test", best)
            if rows is not None:  # before the baselines that they belong to
                write_atomic(confirmed.base_rows_path, rows.to_bytes())
        measured = [each for each in self.folder.baselines() or () if not is_untouched(each.name)]
        for shots in self.shots:
            failure, failed, applies = confirmed.base_failure(shots).read(), "", True
            if failure is not None:
                failed, applies = failure.reason[:200], failure.applies
                _logger.warning("the untouched base cannot be asked with %d worked examples: %s", shots, failed)
            seconds = sum(part.seconds for split in _SPLITS for part in confirmed.answers(shots, split).values())
            metrics = validation[shots], test if shots == best else {}
            measured.append(Baseline(shots_name(shots), *metrics, seconds=seconds, failed=failed, applies=applies))
        self.folder.write_baselines(measured)

    def _work(self, split: Split, shots: int) -> list[WorkItem[Answers]]:
        """Return the rows of a split that are not answered yet, in parts for all hosts.

        Once a part has failed, the rest is not asked, and the reason is kept: a baseline stops no search. Worked
        examples may not fit, which no second try changes.
        """
        confirmed, identity, task = self.folder.confirmed, self.actors.info.identity, self.task.for_candidates

        def failed(error: Exception) -> None:
            applies = not (shots and isinstance(error, TaskDataError))
            confirmed.base_failure(shots).write(BaseFailure(reason_of(error), applies))

        def part(rows: range) -> WorkItem[Answers]:
            return WorkItem(
                lambda host: host.answer_without_adapter.remote(identity, split, rows, shots, task),
                lambda answers: confirmed.write_answers(shots, rows, answers, split),
                failed,
            )

        if confirmed.base_failure(shots).path.exists():
            return []
        done = confirmed.answers(shots, split)
        return [part(rows) for named, rows in self._parts(split).items() if named not in done]

    def _parts(self, split: Split) -> dict[range, range]:
        """Return the rows that are asked, in parts, by the name of each part's file, which knows no steps."""
        num_rows = self.actors.info.data.num_rows[split]  # of the whole split, however many rows reports score
        rows = range(0, num_rows, max(1, -(-num_rows // BASE_MODEL_ROWS)) if split == "validation" else 1)
        parts = [rows[start : start + _ASKED_ROWS] for start in range(0, len(rows), _ASKED_ROWS)]
        return {range(part.start, part.stop): part for part in parts}

    def _scored(self, split: Split, shots: int) -> tuple[dict[str, float], ScoredRows | None]:
        """Return the metrics of a split and the rows; {} and None if some answers are missing."""
        answered, parts = self.folder.confirmed.answers(shots, split), self._parts(split)
        if not parts or parts.keys() - answered.keys():
            return {}, None
        return joined([answered[named] for named in parts], self.task.for_candidates)


_SPLITS: tuple[Split, ...] = ("validation", "test")
