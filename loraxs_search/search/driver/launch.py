"""Start a search from a space, or go on with one from its study folder."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING

from loraxs_search import versions
from loraxs_search.errors import LoraxsError, SearchInterruptedError, UsageError
from loraxs_search.home import in_use
from loraxs_search.log.events import Phase
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.search.cluster.connection import connected, own_error
from loraxs_search.search.driver.commander import asks_for_more
from loraxs_search.search.driver.driver import Driver
from loraxs_search.search.driver.result import SearchResult, close_finished, lacks_baseline
from loraxs_search.search.driver.start_from import resolve_start
from loraxs_search.search.ledger import SearchView, SilentView
from loraxs_search.search_space.edits import Overrides
from loraxs_search.search_space.load import SpaceSource, open_space
from loraxs_search.search_space.space import Space
from loraxs_search.steering import foreseen
from loraxs_search.steering.state import extended
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.info import StudyInfo
from loraxs_search.studies.lookup import store_of
from loraxs_search.studies.remote_resume import check_new_in, fetch
from loraxs_search.studies.storage import Storage
from loraxs_search.studies.stored_space import stored_space
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tracking.store import ensure_store

if TYPE_CHECKING:
    from loraxs_search.search.hosts.pool import HostPool


@dataclass(frozen=True)
class Cluster:
    """Which Ray to search on, and what to bring there."""

    address: str | None
    runtime_env: str | None


def launch(  # noqa: PLR0913  # each is a keyword
    space: SpaceSource,
    *,
    name: str | None = None,
    address: str | None = None,
    runtime_env: str | None = None,
    tracking_uri: str | None = None,
    storage: str | None = None,
    overrides: Overrides = (),
    view: SearchView | None = None,
    stop: threading.Event | None = None,
) -> SearchResult:
    """Search `space` and return when it is done; `loraxs_search.launch` says what the arguments are.

    Raises:
        SpaceError: the space has faults.
        StudyError: the name is taken.
        SearchInterruptedError: stopped from outside; go on with `resume`.
    """
    loaded = open_space(space, overrides)
    uri = resolve_uri(tracking_uri)
    info = new_study(loaded, name, uri, storage)
    return _run_one(info, loaded, Cluster(address, runtime_env), view or SilentView(), stop)


def launch_together(
    spaces: Sequence[SpaceSource],
    *,
    address: str | None = None,
    runtime_env: str | None = None,
    tracking_uri: str | None = None,
    storage: str | None = None,
    overrides: Overrides = (),
    views: Callable[[str], SearchView] | None = None,
    stop: threading.Event | None = None,
) -> list[SearchResult]:
    """Search several spaces at once on one pool of hosts, each with its own study.

    Trials of different tasks share passes over the base, so all spaces must name the same one, and their kinds must
    load it in the same way but for the number of outputs. A study that fails does not stop the others.

    Args:
        views: Called with each study's name for who watches it.
    Returns:
        A result for each space, in their order.
    Raises:
        SpaceError: a space has faults.
        UsageError: the spaces do not agree in base, in how it is loaded, in precision, device or pack size.
        LoraxsError: studies ended with an error; the message has them all. The others have finished.
    """
    loaded = [open_space(space, overrides) for space in spaces]
    _check_together(loaded)
    uri = resolve_uri(tracking_uri)
    infos = [new_study(space, None, uri, storage) for space in loaded]
    stop = stop or threading.Event()
    drivers = [
        Driver(info, space, views(info.name) if views else SilentView(), stop)
        for info, space in zip(infos, loaded, strict=True)
    ]
    with _ready(loaded, uri, Cluster(address, runtime_env)) as pool:
        return _run_side_by_side(drivers, pool, stop)


def _run_side_by_side(drivers: Sequence[Driver], pool: HostPool, stop: threading.Event) -> list[SearchResult]:
    with ThreadPoolExecutor(len(drivers), "study") as threads:
        futures = [threads.submit(driver.run, pool) for driver in drivers]
        try:
            wait(futures)
        except BaseException:
            stop.set()  # the studies end before Ray is stopped
            raise
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise _joined(errors)
    return [future.result() for future in futures]


def _check_together(spaces: Sequence[Space]) -> None:
    first, *others = spaces
    values: dict[str, Callable[[Space], object]] = {
        "`base_model`": lambda space: " ".join(filter(None, astuple(space.base_model))),
        "`search.precision`": lambda space: space.search.precision,
        "`search.device`": lambda space: space.search.device,
        "`search.pack_size`": lambda space: space.search.pack_size,
        "how `task.kind` loads the base": _body,
    }
    for name, of in values.items():
        if unlike := next((space for space in others if of(space) != of(first)), None):
            raise UsageError(
                f"Spaces that are searched together must agree in {name}, but {first.name} has {of(first)} and"
                f" {unlike.name} has {of(unlike)}.",
                hint="launch them one after the other, or give both the same",
            )


def _body(space: Space) -> str:
    """Describe how a space's kind loads the base, whatever its outputs."""
    body = kind_of(space.task).model.body
    settings = [f"{name}={value}" for name, value in body.config]
    head = "no head" if body.num_outputs is None else f"a head with pooling {body.pooling}"
    return ", ".join([body.auto_class, head, *settings])


def _joined(errors: Sequence[BaseException]) -> BaseException:
    """Return the only error, or one with the messages of all."""
    if len(errors) == 1:
        return errors[0]
    errors = [own_error(error) for error in errors]
    kind = SearchInterruptedError if all(isinstance(e, SearchInterruptedError) for e in errors) else LoraxsError
    hints = [error.hint for error in errors if isinstance(error, LoraxsError) and error.hint]
    return kind("\n".join(map(str, errors)), hint="\n".join(dict.fromkeys(hints)))


def new_study(loaded: Space, name: str | None, uri: str, storage: str | None = None) -> StudyInfo:
    """Return what a new study starts with, once its name is known to be free.

    Raises:
        StudyError: the name is taken, here or in the storage.
        StorageError: the storage cannot be used.
    """
    place = Storage(storage) if storage is not None else None
    info = StudyInfo(
        name=name or _fresh_name(loaded.name),
        study_id=uuid.uuid4().hex,
        task=loaded.task,
        base_model=loaded.base_model,
        search=loaded.search,
        promotion=loaded.promotion,
        space_source=loaded.source,
        space_folder=loaded.folder,
        tracking_uri=uri,
        created_at=time.time(),
        versions=versions.installed(),
        storage=place.uri if place else None,
    )
    StudyFolder.check_new(info.name)
    if place is not None:
        place.check()
        check_new_in(place, info.name)
    return replace(info, start_from=resolve_start(loaded, uri))


def _fresh_name(space: str) -> str:
    """Return a new study's name, from its space's: a file may be named as no study can be."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", space).strip("_.-")[:75] or "space"
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"


def _run_one(
    info: StudyInfo,
    space: Space,
    cluster: Cluster,
    view: SearchView,
    stop: threading.Event | None,
    *,
    is_locked: bool = False,
) -> SearchResult:
    installing = ", which first makes the environment on every node" if cluster.runtime_env else ""
    view.happened(Phase(text=f"starting Ray{installing}"))
    with _ready([space], info.tracking_uri, cluster) as pool:
        return Driver(info, space, view, stop or threading.Event(), is_locked=is_locked).run(pool)


@contextlib.contextmanager
def _ready(spaces: Sequence[Space], tracking_uri: str, cluster: Cluster) -> Iterator[HostPool]:
    """Connect to Ray and check MLflow, both at once, then all nodes; yield hosts for the spaces.

    The first host loads while MLflow is still asked.

    Raises:
        ClusterError, TrackingError: one of them does not answer, or a node cannot run trials.
    """
    with in_use(), ThreadPoolExecutor(1, "store") as beside:
        store = beside.submit(ensure_store, tracking_uri)
        with connected(cluster.address, runtime_env=cluster.runtime_env):
            from loraxs_search.search.cluster.doctor import check_nodes
            from loraxs_search.search.hosts.host_config import host_config
            from loraxs_search.search.hosts.pool import HostPool

            if cluster.address is not None:
                store.result()
                check_nodes(spaces, tracking_uri)

            pool = HostPool(host_config(spaces), [space.search for space in spaces])
            try:
                pool.preload(spaces[0].task)
                store.result()
                yield pool
            finally:
                pool.close()


def resume(
    name: str,
    *,
    address: str | None = None,
    runtime_env: str | None = None,
    storage: str | None = None,
    view: SearchView | None = None,
    stop: threading.Event | None = None,
) -> SearchResult:
    """Go on with a study where its last reports left it.

    A finished one is returned as it is; where it lacks a required baseline, that is measured.

    Args:
        storage: Where the study was copied to, when another machine began it; one that began here knows.

    Raises:
        StudyError: there is no such study, or another process is at work on it.
        TrackingError: the database that it records in is gone.
    """
    place = storage or (StudyFolder.open(name).info.storage if StudyFolder.exists(name) else None)
    folder = StudyFolder.open(name) if place is None else fetch(name, Storage(place))
    info = replace(folder.info, tracking_uri=store_of(folder))
    has_ended = folder.candidates() is not None
    state = foreseen(folder).state
    is_done = has_ended and not asks_for_more(folder, state)
    if is_done and not lacks_baseline(folder):
        return close_finished(folder)
    space = stored_space(folder)
    space = replace(space, search=extended(space.search, state))
    with folder.lock():  # before Ray is started: commands that come now wait for this driver
        return _run_one(info, space, Cluster(address, runtime_env), view or SilentView(), stop, is_locked=True)
