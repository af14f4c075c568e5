"""The baselines of a study, in its folder before the end: simple models, and the base without an adapter.

Simple models are measured once, on a host beside the trials.

The untouched base is the baseline of task kinds that declare `shots`. A base that writes does not stop where an adapter
does, so asking it costs more than a search. It is asked with each number of worked examples on `BASE_MODEL_ROWS`
validation rows, spread evenly over all of them; the best of these answers the test rows, all of them, since promotion
compares row by row. Parts are spread over all hosts, and what was answered before a kill is not asked again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from loraxs_search.errors import HomeError, first_line
from loraxs_search.records.host import Answers
from loraxs_search.records.literals import Split
from loraxs_search.records.promotion import BASE_MODEL_ROWS, Baseline, is_unmeasured, is_untouched, shots_name
from loraxs_search.records.task import Task
from loraxs_search.search.driver.work_items import WorkItem, base_answer_work, in_parts, joined
from loraxs_search.search.hosts.answers import HOST_LOST, await_answer
from loraxs_search.search.hosts.study_actors import StudyActors
from loraxs_search.studies.confirmations import Confirmations
from loraxs_search.studies.folder import StudyFolder

log = logging.getLogger(__name__)


class StudyBaselines:
    """Begins to measure a study's baselines, unless they are in its folder, and waits for them at the end.

    Those that failed are measured again; `BaseModelBaseline` measures the untouched base.

    The first host measures, and Ray hands its answer to the snapshot store, which writes it: what the driver asks
    of the store later waits for that.
    """

    def __init__(self, folder: StudyFolder, actors: StudyActors, task: Task) -> None:
        self._folder, self._actors, self._task = folder, actors, task
        self._written: ObjectRef[None] | None = None
        self._known: tuple[Baseline, ...] = ()
        from loraxs_search.tasks.baselines import fitting_baselines
        from loraxs_search.tasks.kinds import kind_of

        known, kept = folder.baselines() or (), folder.baseline_answers()
        measured = {one.name for one in known if not one.failed and (one.answer is not None or one.name in kept)}
        hopeless = {one.name for one in known if one.failed and not one.applies}
        if set(fitting_baselines(kind_of(task))) - measured - hopeless:
            self._written = actors.snapshot_store.write_baselines.remote(actors.pool.host().baselines.remote(task))

    def known(self) -> tuple[Baseline, ...]:
        """Return those that are in the study folder by now; waits for nothing."""
        if not self._known and (self._written is None or ray.wait([self._written], timeout=0)[0]):
            self._known = self._folder.baselines() or ()
        return self._known

    def result(self, on_loop_step: Callable[[], None]) -> tuple[Baseline, ...]:
        """Return the baselines once they are in the study folder; those that cannot be had say why.

        Args:
            on_loop_step: Called several times a second meanwhile; raises when the search was stopped from outside. A
                resumed search measures them anew.
        Raises:
            HomeError: the folder cannot be written.
        """
        if (written := self._written) is not None:
            try:
                try:
                    await_answer(written, on_loop_step)
                except (*HOST_LOST, RayTaskError) as error:
                    if isinstance(error, HomeError):
                        raise
                    measured = self._actors.pool.ask(lambda host: host.baselines.remote(self._task), on_loop_step)
                    self._folder.write_baselines(measured)
            except HomeError:
                raise
            except (*HOST_LOST, RayTaskError) as error:
                self._write_failures(first_line(getattr(error, "cause", error)))
            self._written = None
        return self._folder.baselines() or ()

    def _write_failures(self, reason: str) -> None:
        """Write which baselines cannot be measured."""
        log.warning("the study's baselines cannot be measured: %s", reason)
        from loraxs_search.tasks.baselines import fitting_baselines
        from loraxs_search.tasks.kinds import kind_of

        measured = {one.name: one for one in self._folder.baselines() or () if not one.failed}
        failed = (Baseline(name, failed=reason[:200], applies=True) for name in fitting_baselines(kind_of(self._task)))
        self._folder.write_baselines([measured.get(one.name, one) for one in failed])


_PART = 32  # rows; a slow machine may write each for seconds, and says after each part how far it is


@dataclass(frozen=True)
class BaseModelBaseline:
    """Measures what the untouched base reaches, and keeps it among the study's baselines.

    Args:
        spread: Has items done on all hosts.
    """

    folder: StudyFolder
    actors: StudyActors
    task: Task
    spread: Callable[[Sequence[WorkItem[Answers]]], None]

    @cached_property
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
        return self._confirmed.base_rows_path.exists() or all(each.failed for each in known if is_untouched(each.name))

    def seconds_per_row(self) -> float:
        """Return how long an answer takes, by the first rows, which are asked now if need be; 0 if none are."""
        if not self.shots:
            return 0.0
        if not self._confirmed.base_answers(self.shots[0], "validation"):
            self.spread(self._work("validation", self.shots[0])[:1])
        answered = self._confirmed.base_answers(self.shots[0], "validation").values()
        return sum(part.seconds for part in answered) / max(1, sum(len(part.labels) for part in answered))

    def measure(self) -> None:
        """Have the base answer what it has not answered yet, and write its baselines."""
        if self.is_measured:
            return
        self._confirmed.forget_base_failures()
        self.spread([item for shots in self.shots for item in self._work("validation", shots)])
        scores = {shots: self._metrics(shots, "validation") for shots in self.shots}
        sign = 1.0 if self.task.direction == "maximize" else -1.0
        values = {shots: sign * metrics[self.task.metric] for shots, metrics in scores.items() if metrics}
        best = None
        if values:  # none may be finite, which is a result
            best = max(values, key=lambda shots: (values[shots] if math.isfinite(values[shots]) else -math.inf, -shots))
            self.spread(self._work("test", best))
        self._write(scores, best)

    # ---- inside ------------------------------------------------------------------------------------------------------
    @property
    def _confirmed(self) -> Confirmations:
        return self.folder.confirmations()

    def _work(self, split: Split, shots: int) -> list[WorkItem[Answers]]:
        """Return the rows of a split that are not answered yet, in parts for all hosts."""
        if self._confirmed.base_failure(shots):
            return []
        done = self._confirmed.base_answers(shots, split)
        identity = self.actors.info.identity
        return [
            base_answer_work(self.folder, identity, self.task, split, rows, shots)
            for rows in self._parts(split)
            if _as_named(rows) not in done
        ]

    def _parts(self, split: Split) -> list[range]:
        num_rows = self.actors.info.data.num_rows[split]  # of the whole split, however many rows reports score
        step = max(1, -(-num_rows // BASE_MODEL_ROWS)) if split == "validation" else 1
        return in_parts(range(0, num_rows, step), _PART)

    def _answers(self, shots: int, split: Split) -> list[Answers]:
        """Return the answers to a split, in order; none if some could not be had."""
        answered = self._confirmed.base_answers(shots, split)
        parts = [answered[name] for rows in self._parts(split) if (name := _as_named(rows)) in answered]
        return parts if len(parts) == len(self._parts(split)) else []

    def _metrics(self, shots: int, split: Split) -> dict[str, float]:
        answers = self._answers(shots, split)
        return joined(answers, self.task.for_candidates)[0] if answers else {}

    def _write(self, validation: dict[int, dict[str, float]], best: int | None) -> None:
        """Write the baselines, after the answers of the best to the test rows."""
        test: dict[str, float] = {}
        if best is not None and (answers := self._answers(best, "test")):
            test, rows = joined(answers, self.task.for_candidates)
            self._confirmed.write_base_rows(rows.to_bytes())
        others = [baseline for baseline in self.folder.baselines() or () if not is_untouched(baseline.name)]
        measured = [self._baseline(shots, validation[shots], test if shots == best else {}) for shots in self.shots]
        self.folder.write_baselines([*others, *measured])

    def _baseline(self, shots: int, validation: dict[str, float], test: dict[str, float]) -> Baseline:
        parts = (answers for split in _SPLITS for answers in self._confirmed.base_answers(shots, split).values())
        failure = self._confirmed.base_failure(shots)
        failed, applies = ("", True) if failure is None else (failure.reason[:200], failure.applies)
        if failed:
            log.warning("the untouched base cannot be asked with %d worked examples: %s", shots, failed)
        seconds = sum(part.seconds for part in parts)
        return Baseline(shots_name(shots), validation, test, seconds=seconds, failed=failed, applies=applies)


_SPLITS: tuple[Split, ...] = ("validation", "test")


def _as_named(rows: range) -> range:
    """Return rows as the files of their answers name them, which says nothing of the step between them."""
    return range(rows.start, rows.stop)
