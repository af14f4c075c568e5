"""The driver: one search from an empty cluster to scored candidates."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from loraxs_search.errors import HomeError, SearchInterruptedError
from loraxs_search.log.clock import steady_time
from loraxs_search.log.events import SearchFinished
from loraxs_search.search.cluster.connection import own_error
from loraxs_search.search.driver.result import SearchResult, keep_report, lacks_baseline, open_tracker, summary_of
from loraxs_search.search.driver.start_from import check_start, keep_start, with_pooling
from loraxs_search.search.ledger import Ledger, SearchView
from loraxs_search.search_space.space import Space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.info import StudyInfo
from loraxs_search.studies.journal import Journal
from loraxs_search.studies.mirror import mirrored

if TYPE_CHECKING:
    from loraxs_search.search.hosts.pool import HostPool
    from loraxs_search.search.hosts.study_actors import StudyActors
    from loraxs_search.tracking.tracker import Tracker


class OwnStop(threading.Event):
    """Stops one search: set by itself, or with the event that stops all that run together.

    Args:
        shared: Stops all; it is never set from here.
    """

    def __init__(self, shared: threading.Event) -> None:
        super().__init__()
        self._shared = shared

    def is_set(self) -> bool:
        return super().is_set() or self._shared.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, by which the shared event is noticed at the end: give a short time."""
        return super().wait(timeout) or self.is_set()


class Driver:
    """Runs one study on Ray. Every stage can be repeated: the study folder has what a killed driver did.

    Args:
        stop: Set from anywhere, it ends the search cleanly, and those that run beside it.
        is_locked: Whether this process holds the study already.
    """

    def __init__(
        self, info: StudyInfo, space: Space, view: SearchView, stop: threading.Event, *, is_locked: bool = False
    ) -> None:
        self._info, self._space, self._stop, self._is_locked = info, space, OwnStop(stop), is_locked
        self._ledger = Ledger(info.name, view)
        self._started_at = steady_time()

    def run(self, pool: HostPool) -> SearchResult:
        """Search on the hosts of `pool`, score the best trials, and return the result.

        Raises:
            SearchInterruptedError: stopped before the budget was used.
            TrialsFailError: nearly all of the latest trials failed for the same reason, or all have failed.
        """
        self._ledger.phase("loading the base model and the data")
        from loraxs_search.search.driver import session  # noqa: F401  # Ray Tune and Optuna load while the host does
        from loraxs_search.search.hosts.study_actors import StudyActors

        with self._ledger.hearing_warnings():
            folder = self._begun_folder()
            recorded = folder.identity() if folder else None
            actors = StudyActors(self._info, self._space, pool, self._check_stop, recorded)
            try:
                self._info, self._space = with_pooling(self._info, self._space, actors.info)
                check_start(self._space, self._info, actors.info)
                actors.prepare_factors(self._ledger.phase)
                return self._run_with(actors, self._open_folder())
            finally:
                actors.close()

    def _run_with(self, actors: StudyActors, folder: StudyFolder) -> SearchResult:
        with contextlib.nullcontext() if self._is_locked else folder.lock(), mirrored(folder, self._stop.set) as mirror:
            if folder.identity() is None:
                folder.write_identity(actors.info.identity)
            if lacks_baseline(folder):
                folder.set_candidates_aside()
            actors.start_from = keep_start(folder)
            journal, uri = folder.journal(), self._info.tracking_uri
            tracker = open_tracker(folder, uri, mirror)
            try:
                result = self._search(folder, actors, journal, tracker)
                keep_report(folder, journal)
                journal.append(SearchFinished(state="FINISHED", summary=summary_of(result)))
                return result
            except BaseException as error:
                if mirror is not None and mirror.lost_to is not None:
                    raise mirror.lost_to from error
                stopped = isinstance(error, (SearchInterruptedError, KeyboardInterrupt))
                with contextlib.suppress(HomeError):  # of a disk that may be full, which the search has ended for
                    notice = {"notice": str(own_error(error))}
                    journal.append(SearchFinished(state="KILLED" if stopped else "FAILED", summary=notice))
                raise
            finally:
                self._ledger.close()  # the log may be another driver's soon, and MLflow gets nothing from here on
                self._ledger.phase("writing the last records to MLflow")
                if mirror is not None and mirror.lost_to is not None:
                    tracker.abandon()
                else:
                    tracker.close()

    def _search(self, folder: StudyFolder, actors: StudyActors, journal: Journal, tracker: Tracker) -> SearchResult:
        from loraxs_search.search.driver.session import SearchSession

        return SearchSession(
            self._info,
            self._space,
            folder,
            journal,
            actors,
            self._ledger,
            self._stop,
            started_at=self._started_at,
            run_of=tracker.run_id,
        ).run()

    def _check_stop(self) -> None:
        """Refuse to go on once the search was stopped from outside.

        Raises:
            SearchInterruptedError: it was.
        """
        if self._stop.is_set():
            raise SearchInterruptedError.of([] if self._begun_folder() is None else [self._info.name])

    def _begun_folder(self) -> StudyFolder | None:
        """Return the study's folder, where an earlier driver began it."""
        if StudyFolder.exists(self._info.name):
            folder = StudyFolder.open(self._info.name)
            if folder.info.study_id == self._info.study_id:
                return folder
        return None

    def _open_folder(self) -> StudyFolder:
        # `create` refuses a name that was taken in the meantime.
        return self._begun_folder() or StudyFolder.create(self._info, self._space.text, resolved=self._space)
