"""Work that any host can do, item by item, mapped over all hosts of a pool; the baselines of a study are such work.

Refits train the candidates' recipes again from fresh seeds: hosts that pack advance them in the same rounds. They do
not go through Ray Tune, as nothing proposes or stops them and no log has their reports: they are spread over the hosts
as scores, answers and adapter files are.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from loraxs_search.errors import ClusterError, HomeError, LoraxsError, TaskDataError, first_line
from loraxs_search.home import write_atomic
from loraxs_search.records.adapter import Answers
from loraxs_search.records.codec import Split, sign_of
from loraxs_search.records.search import BASE_MODEL_ROWS, SHOTS, Baseline
from loraxs_search.records.task import Task
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.search.hosts.answers import HOST_LOST, Ask, on_host
from loraxs_search.search.hosts.host_actor import HostProxy
from loraxs_search.search.hosts.pool import HostPool, StudyActors
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.tasks.baselines import fitting_baselines
from loraxs_search.tasks.kinds import RowScores, kind_of

_MAX_LOST_HOSTS = 3
_ASKED_ROWS = 100  # of a part: enough that long answers hold up few others; each part says how far it is
_SPLITS: tuple[Split, ...] = ("validation", "test")
_logger = logging.getLogger(__name__)

# It yields what to ask a host next and gets the answer there, or the error, which ends the search unless the item takes
# it. It keeps its own results, so that a killed driver finds what was done.
WorkItem = Generator[Ask[Any], Any, None]


def map_over_hosts(
    pool: HostPool,
    items: Sequence[WorkItem],
    on_loop_step: Callable[[], None],
    *,
    at_once: int = 1,
    finished: Callable[[int], None] = lambda _: None,
) -> None:
    """Have every item done, `at_once` on each host at a time.

    An item whose host died asks another host.

    Args:
        pool: Not asked where there is nothing to do.
        on_loop_step: Called several times a second; raises when the search was stopped from outside.
        at_once: More than 1 where items share passes.
        finished: Called with how many items are done, after each.
    Raises:
        RayError: hosts keep dying; one of `HOST_LOST`.
        ClusterError, HomeError: a node is not fit for the search, or its disk is full.
    """
    waiting, pending = deque(items), dict[ObjectRef[Any], tuple[WorkItem, Ask[Any], HostProxy]]()
    losses_left, hosts = _MAX_LOST_HOSTS * len(items), pool.hosts() if items else []
    num_done = 0

    def go_on(host: HostProxy, item: WorkItem | None = None, step: Callable[[], Ask[Any]] | None = None) -> None:
        """Have a host asked for an item's next step, or for the first one of an item that waits."""
        nonlocal num_done
        while item is not None or waiting:
            item = item or waiting.popleft()
            try:
                ask = step() if step else next(item)
            except StopIteration:
                item, step, num_done = None, None, num_done + 1
                finished(num_done)
            else:
                pending[ask(host)] = item, ask, host
                return

    for host in [host for _ in range(at_once) for host in hosts]:
        go_on(host)
    while pending:
        on_loop_step()
        done, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
        for reference in done:
            item, ask, host = pending.pop(reference)
            try:
                step = functools.partial(item.send, ray.get(reference))
            except HOST_LOST:
                losses_left -= 1
                if losses_left < 0:
                    raise
                host = pool.host(lost=host)
                pending[ask(host)] = item, ask, host
                continue
            except (ClusterError, HomeError):  # a node's fault, not the item's
                raise
            except (LoraxsError, RayTaskError) as error:
                step = functools.partial(item.throw, error)
            go_on(host, item, step)


def reason_of(error: LoraxsError | RayTaskError) -> str:
    """Return what went wrong on a host, as text for display."""
    return error.message if isinstance(error, LoraxsError) else f"{type(error.cause).__name__}: {error.cause}"


def joined(parts: Sequence[Answers], task: Task) -> tuple[dict[str, float], ScoredRows]:
    """Return the metrics and the rows that consecutive answers make up; not finite where some answers are not."""

    def column(name: str) -> list[Any] | None:
        """Return a column of all rows; None if some part has none."""
        of_parts = [getattr(part, name) for part in parts]
        return None if any(own is None for own in of_parts) else [value for own in of_parts for value in own]

    columns = {name: column(name) for name in ("losses", "counts", "correct", "ended", "confidences")}
    predictions, labels = column("predictions") or [], column("labels") or []
    names = [name for name in task.slices if all(name in part.slices for part in parts)]
    slices = {name: [value for part in parts for value in part.slices[name]] for name in names}
    sums: dict[str, Any] = {name: columns[name] for name in ("losses", "counts", "correct", "confidences")}
    rows = ScoredRows.of(predictions, labels, **sums, slices=slices)
    if not all(part.predictions for part in parts):
        return dict.fromkeys((*task.metrics, "loss"), math.nan), rows
    if columns["losses"] is None:  # sums of parts do as well as those of rows
        counts = [len(part.labels) if part.loss_count is None else part.loss_count for part in parts]
        columns |= {"losses": [part.loss for part in parts], "counts": counts}
    arrays: dict[str, Any] = {name: None if values is None else np.asarray(values) for name, values in columns.items()}
    return kind_of(task).measure_scores(RowScores(rows.predictions, **arrays), rows.labels), rows


class StudyBaselines:
    """Begins to measure a study's baselines on the first host, unless they are in its folder, and waits at the end.

    Those that failed are measured again; `BaseModelBaseline` measures the untouched base.
    """

    def __init__(self, folder: StudyFolder, actors: StudyActors, task: Task) -> None:
        self._folder, self._pool, self._fitting = folder, actors.pool, fitting_baselines(kind_of(task))
        self._ask: Ask[tuple[Baseline, ...]] = lambda host: host.baselines.remote(task)
        self._begun: ObjectRef[Any] | None = None
        self._known = folder.baselines() or ()  # those that are in the study folder by now: reports read no file
        kept = folder.baseline_answers()
        measured = {one.name for one in self._known if not one.failed and (one.answer is not None or one.name in kept)}
        hopeless = {one.name for one in self._known if one.failed and not one.applies}
        if set(self._fitting) - measured - hopeless:
            self._begun = self._ask(actors.pool.host())

    def take(self) -> tuple[Baseline, ...]:
        """Write those that are measured by now, and return all that are in the study folder.

        Waits for nothing, and leaves a host's fault to `result`.

        Raises:
            HomeError: the folder cannot be written.
        """
        if self._begun is not None and ray.wait([self._begun], timeout=0)[0]:
            with contextlib.suppress(*HOST_LOST, RayTaskError):
                self._write(ray.get(self._begun))
        return self._known

    def result(self, on_loop_step: Callable[[], None]) -> tuple[Baseline, ...]:
        """Return the baselines once they are in the study folder; those that cannot be had say why.

        Args:
            on_loop_step: Called several times a second meanwhile; raises when the search was stopped from outside. A
                resumed search measures them anew.
        Raises:
            HomeError: the folder cannot be written.
        """
        if self._begun is not None:
            try:
                measured = self._pool.ask(self._ask, on_loop_step, self._begun)
            except HomeError:  # a disk of the host's node
                raise
            except (*HOST_LOST, RayTaskError) as error:
                reason = first_line(getattr(error, "cause", error))
                _logger.warning("the study's baselines cannot be measured: %s", reason)
                known = {one.name: one for one in self._known if not one.failed}
                failed = [Baseline(name, failed=reason[:200], applies=True) for name in self._fitting]
                measured = tuple(known.get(one.name, one) for one in failed)
            self._write(measured)
        return self._folder.baselines() or ()

    def _write(self, measured: Sequence[Baseline]) -> None:
        self._folder.write_baselines(measured)
        self._known, self._begun = self._folder.baselines() or (), None


class BaseModelBaseline:
    """Measures what the untouched base reaches, and keeps it among the study's baselines.

    It is the baseline of task kinds that declare `shots`. A base that writes does not stop where an adapter does, so
    asking it costs more than a search. It is asked with each number of worked examples on `BASE_MODEL_ROWS` validation
    rows, spread evenly over all of them; the best of these answers the test rows, all of them, since promotion compares
    row by row. What was answered before a kill is not asked again.

    Args:
        spread: Has items done on all hosts.
    """

    def __init__(
        self, folder: StudyFolder, actors: StudyActors, task: Task, spread: Callable[[Sequence[WorkItem]], None]
    ) -> None:
        self._folder, self._confirmed, self._actors, self._spread = folder, folder.confirmed, actors, spread
        self._task, self._shots = task.for_candidates, kind_of(task).shots  # numbers of worked examples in its prompts
        self._names = {shots: f"{shots or 'zero'}{SHOTS}" for shots in self._shots}

    @property
    def is_measured(self) -> bool:
        """Whether there is no more to do; what has failed is asked again."""
        known = self._folder.baselines() or ()
        if not set(self._names.values()) <= {each.name for each in known if not each.is_unmeasured}:
            return False
        return self._confirmed.base_rows_path.exists() or all(each.failed for each in known if each.is_untouched)

    def answered(self) -> tuple[float, int]:
        """Return how long an answer takes, by the first rows, which are asked now if need be, and how many are known.

        Both are 0 where the base is asked nothing.
        """
        if not self._shots:
            return 0.0, 0
        if not self._confirmed.answers(self._shots[0], "validation"):
            self._spread(self._work("validation", self._shots[0])[:1])
        first = self._confirmed.answers(self._shots[0], "validation").values()
        answer_s = sum(part.seconds for part in first) / max(1, sum(len(part.labels) for part in first))
        known = [self._confirmed.answers(shots, split) for split in _SPLITS for shots in self._shots]
        return answer_s, sum(len(part.labels) for own in known for part in own.values())

    def measure(self) -> None:
        """Have the base answer what it has not answered yet, and write its baselines."""
        if self.is_measured:
            return
        confirmed, task = self._confirmed, self._task
        for shots in self._shots:
            confirmed.base_failure(shots).path.unlink(missing_ok=True)
        self._spread([item for shots in self._shots for item in self._work("validation", shots)])
        validation = {shots: self._scored("validation", shots)[0] for shots in self._shots}
        sign = sign_of(task.direction)
        values = {shots: sign * metrics[task.metric] for shots, metrics in validation.items() if metrics}
        best, test = None, dict[str, float]()
        if values:  # none may be finite, which is a result
            best = max(values, key=lambda shots: (values[shots] if math.isfinite(values[shots]) else -math.inf, -shots))
            self._spread(self._work("test", best))
            test, rows = self._scored("test", best)
            if rows is not None:  # before the baselines that they belong to
                write_atomic(confirmed.base_rows_path, rows.to_bytes())
        measured = [each for each in self._folder.baselines() or () if not each.is_untouched]
        for shots in self._shots:
            known = confirmed.base_failure(shots).read() or Baseline(self._names[shots])
            if known.failed:
                _logger.warning("the untouched base cannot be asked with %d worked examples: %s", shots, known.failed)
            seconds = sum(part.seconds for split in _SPLITS for part in confirmed.answers(shots, split).values())
            scored = replace(known, validation_metrics=validation[shots], test_metrics=test if shots == best else {})
            measured.append(replace(scored, seconds=seconds))
        self._folder.write_baselines(measured)

    def _work(self, split: Split, shots: int) -> list[WorkItem]:
        """Return the rows of a split that are not answered yet, in parts for all hosts.

        Once a part has failed, the rest is not asked, and the reason is kept: a baseline stops no search. Worked
        examples may not fit, which no second try changes.
        """
        confirmed, identity, task = self._confirmed, self._actors.info.identity, self._task

        def part(rows: range) -> WorkItem:
            if confirmed.base_failure(shots).path.exists():
                return
            try:
                answers = yield on_host(
                    lambda host: host.answer_without_adapter(split, rows, shots, task), task, identity=identity
                )
            except (LoraxsError, RayTaskError) as error:
                applies = not (shots and isinstance(error, TaskDataError))
                failed = Baseline(self._names[shots], failed=reason_of(error)[:200], applies=applies)
                confirmed.base_failure(shots).write(failed)
            else:
                confirmed.write_answers(shots, rows, answers, split)

        done = confirmed.answers(shots, split)
        return [part(rows) for named, rows in self._parts(split).items() if named not in done]

    def _parts(self, split: Split) -> dict[range, range]:
        """Return the rows that are asked, in parts, by the name of each part's file, which knows no steps."""
        num_rows = self._actors.info.data.num_rows[split]  # of the whole split, however many rows reports score
        rows = range(0, num_rows, max(1, -(-num_rows // BASE_MODEL_ROWS)) if split == "validation" else 1)
        parts = [rows[start : start + _ASKED_ROWS] for start in range(0, len(rows), _ASKED_ROWS)]
        return {range(part.start, part.stop): part for part in parts}

    def _scored(self, split: Split, shots: int) -> tuple[dict[str, float], ScoredRows | None]:
        """Return the metrics of a split and the rows; {} and None if some answers are missing."""
        answered, parts = self._confirmed.answers(shots, split), self._parts(split)
        if not parts or parts.keys() - answered.keys():
            return {}, None
        return joined([answered[named] for named in parts], self._task)
