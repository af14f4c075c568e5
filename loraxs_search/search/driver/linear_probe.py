"""The linear probe that a study's heads start from: fitted once, on a host, before the first trial."""

from __future__ import annotations

import logging
from collections.abc import Callable

import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from loraxs_search.methods.starting import PROBE
from loraxs_search.records import LinearProbe
from loraxs_search.search.hosts.client import HOST_LOST
from loraxs_search.search.hosts.study_actors import StudyActors
from loraxs_search.search_space import Space
from loraxs_search.studies import StudyFolder

log = logging.getLogger(__name__)


class StudyProbe:
    """Begins to fit a study's linear probe, unless its folder has one, while the processes of trials start.

    Args:
        say: Takes what people should know of it.
    """

    def __init__(self, folder: StudyFolder, actors: StudyActors, space: Space, say: Callable[[str], None]) -> None:
        self._folder, self._actors, self._task, self._say = folder, actors, space.task, say
        self._digest = folder.assets().get(PROBE)
        self._asked: ObjectRef[LinearProbe] | None = None
        self._is_settled = self._digest is not None
        if not self._is_settled and "probe" in space.head_inits():
            self._asked = actors.pool.host().linear_probe(space.task)

    def digest(self) -> str | None:
        """Return the asset's digest once the study has it; None where heads start at random."""
        if not self._is_settled:
            self._is_settled, probe = True, self._result()
            if probe.content:
                self._digest = self._folder.write_asset(PROBE, probe.content)
                self._say(f"heads start from a linear probe of {probe.num_rows:,} train rows ({probe.seconds:.1f} s)")
            else:
                self._say(f"heads start at random: {probe.reason}")
        return self._digest

    def _result(self) -> LinearProbe:
        try:
            try:
                return ray.get(self._asked or self._actors.pool.host().linear_probe(self._task))
            except HOST_LOST:
                return self._actors.pool.host().result(lambda host: host.linear_probe(self._task))
        except (*HOST_LOST, RayTaskError) as error:  # no search ends for it
            reason = next(iter(str(getattr(error, "cause", error)).strip().splitlines()), type(error).__name__)
            log.warning("heads have no linear probe to start from: %s", reason)
            return LinearProbe(reason=reason)
