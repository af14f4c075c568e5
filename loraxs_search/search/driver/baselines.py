"""The baselines of a study: measured once, on a host beside its trials, and in the study folder before the end."""

from __future__ import annotations

import logging
from collections.abc import Callable

import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from loraxs_search.errors import HomeError
from loraxs_search.records import Baseline, Task, is_alone, is_unmeasured
from loraxs_search.search.hosts.client import HOST_LOST
from loraxs_search.search.hosts.study_actors import StudyActors
from loraxs_search.studies import StudyFolder

log = logging.getLogger(__name__)


class StudyBaselines:
    """Begins to measure a study's baselines, unless they are in its folder, and waits for them at the end.

    Those that failed are measured again; `BaseAlone` sees to the base alone.

    The first host measures, and Ray hands its answer to the keeper, which writes it: what the driver itself asks of the
    keeper later waits for that.
    """

    def __init__(self, folder: StudyFolder, actors: StudyActors, task: Task) -> None:
        self._folder, self._actors, self._task = folder, actors, task
        self._written: ObjectRef[None] | None = None
        self._known: tuple[Baseline, ...] = ()
        known = folder.baselines()
        if known is None or any(is_unmeasured(one) for one in known if not is_alone(one.name)):
            self._written = actors.keeper.write_baselines.remote(actors.pool.host().baselines(task))

    def known(self) -> tuple[Baseline, ...]:
        """Return those that are in the study folder by now; waits for nothing."""
        if not self._known and (self._written is None or ray.wait([self._written], timeout=0)[0]):
            self._known = self._folder.baselines() or ()
        return self._known

    def result(self) -> tuple[Baseline, ...]:
        """Return the baselines once they are in the study folder; those that cannot be had say why.

        Raises:
            HomeError: the folder cannot be written.
        """
        if (written := self._written) is not None:
            self._finish(lambda: ray.get(written), self._measure_again)
            self._written = None
        return self._folder.baselines() or ()

    def _finish(self, *ways: Callable[[], object]) -> None:
        """Go the first way that leads to baselines in the folder; where none does, write which failed."""
        reason = ""
        for way in ways:
            try:
                way()
            except HomeError:
                raise
            except (*HOST_LOST, RayTaskError) as error:
                reason = next(iter(str(getattr(error, "cause", error)).strip().splitlines()), type(error).__name__)
            else:
                return
        log.warning("the study's baselines cannot be measured: %s", reason)
        from loraxs_search.tasks.baselines import fitting_baselines
        from loraxs_search.tasks.kinds import kind_of

        measured = {one.name: one for one in self._folder.baselines() or () if not one.failed}
        failed = (Baseline(name, failed=reason[:200], applies=True) for name in fitting_baselines(kind_of(self._task)))
        self._folder.write_baselines([measured.get(one.name, one) for one in failed])

    def _measure_again(self) -> None:
        measured = self._actors.pool.host().result(lambda host: host.baselines(self._task))
        self._folder.write_baselines(measured)
