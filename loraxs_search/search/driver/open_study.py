"""Opening a study for its driver: its hosts, folder, lock, copy, log and MLflow, until the search ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from loraxs_search.assets import START
from loraxs_search.errors import BaseModelError, HomeError, SearchInterruptedError, UsageError, one_of
from loraxs_search.log.events import SearchFinished
from loraxs_search.log.study_log import StudyLog
from loraxs_search.methods import method_of
from loraxs_search.records.host import HostInfo
from loraxs_search.registry.manifest import verify
from loraxs_search.registry.pull import pull
from loraxs_search.search.cluster.connection import own_error
from loraxs_search.search.driver.result import lacks_baseline, open_tracker
from loraxs_search.search.hosts.pool import HostPool
from loraxs_search.search.hosts.study_actors import StudyActors
from loraxs_search.search_space.space import Space, trial_shapes
from loraxs_search.steering import steered
from loraxs_search.steering.state import SteeredStudy
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.info import StudyInfo
from loraxs_search.studies.mirror import mirrored


@dataclass(frozen=True)
class OpenStudy:
    """A study that this driver searches: its lock is held, its log is followed into its copy and MLflow.

    Args:
        study: Its folder, its log, and what people have made of it.
        is_stopped: Whether this search is to end, by itself or with all that run beside it.
        run_of: Returns the run of a trial in MLflow, if it has one by now.
    """

    study: SteeredStudy
    space: Space
    actors: StudyActors
    is_stopped: Callable[[], bool]
    run_of: Callable[[str], str | None]


@contextlib.contextmanager
def open_study(
    info: StudyInfo, space: Space, pool: HostPool, log: StudyLog, stop: threading.Event, *, is_locked: bool
) -> Iterator[OpenStudy]:
    """Open a study on the hosts of `pool`, and record how its search ends; a new one is created.

    Whatever a killed driver has done is found in the folder.

    Args:
        log: The study's; there may be no file of it yet.
        stop: Set from anywhere, it ends the search cleanly, and those that run beside it.
        is_locked: Whether this process holds the study already.
    """
    lost_lease = threading.Event()  # which stops no search beside this one

    def begun() -> StudyFolder | None:
        """Return the study's folder, where this driver or an earlier one began it."""
        if StudyFolder.exists(info.name) and (found := StudyFolder.open(info.name)).info.study_id == info.study_id:
            return found
        return None

    def is_stopped() -> bool:
        return stop.is_set() or lost_lease.is_set()

    def check_stop() -> None:
        if is_stopped():
            raise SearchInterruptedError.of([] if begun() is None else [info.name])

    with contextlib.ExitStack() as closing:
        closing.enter_context(log.saying_warnings())
        folder = begun()
        actors = StudyActors(info, space, pool, check_stop, folder.identity.read() if folder else None)
        closing.callback(actors.close)
        info, space = settled(info, space, actors.info)
        actors.prepare_factors(log.phase)
        if (folder := begun()) is None:  # `create` refuses a name that was taken in the meantime
            folder = StudyFolder.create(info, space.text, resolved=space)
        if not is_locked:
            closing.enter_context(folder.lock())
        mirror = closing.enter_context(mirrored(folder, lost_lease.set))
        if folder.identity.read() is None:
            folder.identity.write(actors.info.identity)
        if lacks_baseline(folder):
            folder.set_candidates_aside()
        actors.start_from = _kept_start(folder)
        log.refresh()
        tracker = open_tracker(folder, info.tracking_uri, mirror)
        try:
            yield OpenStudy(steered(folder, log), space, actors, is_stopped, tracker.run_id)
        except BaseException as error:
            if mirror is not None and mirror.lost_to is not None:
                raise mirror.lost_to from error
            stopped = isinstance(error, (SearchInterruptedError, KeyboardInterrupt))
            with contextlib.suppress(HomeError):  # of a disk that may be full, which the search has ended for
                notice = {"notice": str(own_error(error))}
                log.append(SearchFinished(state="KILLED" if stopped else "FAILED", summary=notice))
            raise
        finally:
            log.close()  # the log may be another driver's soon, and MLflow gets nothing from here on
            log.phase("writing the last records to MLflow")
            if mirror is not None and mirror.lost_to is not None:
                tracker.abandon()
            else:
                tracker.close()


def settled(study: StudyInfo, space: Space, info: HostInfo) -> tuple[StudyInfo, Space]:
    """Return study and space as they are on this base: `pooling: auto` is resolved, and trials may start as they ask.

    A head that reads another pool is no start for trials.

    Raises:
        BaseModelError: the start is of another base.
        UsageError: some trial of the space could not begin at it: rank, modules or factors do not fit.
    """
    task = replace(space.task, pooling=info.pooling) if space.task.pooling == "auto" else space.task
    space, start = replace(space, task=task), study.start_from
    if start is None:
        return replace(study, task=task), space
    if start.base_digest != info.base.weight_digest:
        raise BaseModelError(
            f"`start_from` must name an adapter on this base, with weights {info.base.weight_digest[:16]}..., but"
            f" {start.adapter.name} is on weights {start.base_digest[:16]}....",
            hint="name an adapter of the same base at the same revision",
        )
    start = replace(start, with_head=start.with_head and start.pooling == task.pooling)
    method, by_name = method_of(start.hyperparameters), {module.name: module for module in info.modules}
    heads = [str(head) for head in space.possible_values(method.name, "head") or ()]
    if start.with_head and set(heads) != {start.hyperparameters.head}:
        raise UsageError(
            f"`head` must be the adapter's own ({start.hyperparameters.head}) where trials start from its head, but a "
            f"trial may have {one_of(heads)}.",
            hint=f"write `head: {start.hyperparameters.head}` in `parameters`",
        )
    for params, names in trial_shapes(space, method, info.modules):
        method.check_start(start.hyperparameters, params, [by_name[name] for name in names])
    return replace(study, task=task, start_from=start), space


def _kept_start(folder: StudyFolder) -> str | None:
    """Have the study keep the asset that its trials start from, and return its digest; None if they start anew.

    Raises:
        RegistryError, TrackingError: it cannot be had, and the study does not have it yet.
    """
    start = folder.info.start_from
    if start is None or START in folder.assets():
        return folder.assets().get(START)
    path = pull(start.adapter.name, uri=folder.info.tracking_uri)
    manifest = verify(path)
    if path.name != start.adapter.digest:
        raise UsageError(
            f"{start.adapter.name} must be what study {folder.name!r} began with, but its content is another by now.",
            hint="launch the study again under another name",
        )
    method = method_of(manifest.hyperparameters)
    return folder.write_asset(START, method.start_asset(path, manifest, with_head=start.with_head))
