"""The linear probe that a study's heads start from: fitted once, on a host, before the first trial."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ray import ObjectRef
from ray.exceptions import RayTaskError

from loraxs_search.assets import NOTHING, PROBE
from loraxs_search.errors import ClusterError, HomeError, first_line
from loraxs_search.records.host import LinearProbe
from loraxs_search.search.hosts.client import HOST_LOST, HostClient, await_answer
from loraxs_search.search.hosts.study_actors import StudyActors
from loraxs_search.search_space.space import Space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.tasks.kinds import kind_of

log = logging.getLogger(__name__)


class StudyProbe:
    """Begins to fit a study's linear probe, unless its folder has one, while trials start.

    Args:
        say: Takes what begins.
    """

    def __init__(self, folder: StudyFolder, actors: StudyActors, space: Space, say: Callable[[str], None]) -> None:
        self._folder, self._actors, self._task = folder, actors, space.task
        known = folder.assets().get(PROBE)
        self._digest = None if known == NOTHING else known
        self._asked: ObjectRef[LinearProbe] | None = None
        has_none = kind_of(space.task).model.num_outputs is None
        self._is_settled = known is not None or has_none
        if not self._is_settled and "probe" in space.head_inits():
            say("fitting a linear probe for heads to start from")
            self._asked = self._ask(actors.pool.host())

    def digest(self) -> str | None:
        """Return the asset's digest once the study has it; None if heads start at random, now and after a resume.

        Raises:
            ClusterError, HomeError: the host's node is not fit, or its disk cannot be written.
            SearchInterruptedError: stopped from outside; a resumed search fits it anew.
        """
        if not self._is_settled:
            self._is_settled, probe = True, self._result()
            if probe.content:
                self._digest = self._folder.write_asset(PROBE, probe.content)
                log.info("heads start from a linear probe of %d train rows (%.1f s)", probe.num_rows, probe.seconds)
            else:
                self._folder.write_asset(PROBE, b"")
                log.warning("heads start at random, without a linear probe: %s", probe.reason)
        return self._digest

    def _result(self) -> LinearProbe:
        host, check_stop = self._actors.pool.host, self._actors.check_stop
        try:
            try:
                return await_answer(self._asked or self._ask(host()), check_stop)
            except HOST_LOST:
                return host().result(self._ask, check_stop)
        except (ClusterError, HomeError):
            raise
        except (*HOST_LOST, RayTaskError) as error:  # no search ends for it
            return LinearProbe(reason=first_line(getattr(error, "cause", error)))

    def _ask(self, host: HostClient) -> ObjectRef[LinearProbe]:
        return host.linear_probe(self._task)
