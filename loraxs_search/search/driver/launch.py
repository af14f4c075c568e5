"""Start a search from a space, or go on with one from its study folder."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import astuple, replace
from typing import TYPE_CHECKING

from loraxs_search import versions
from loraxs_search.errors import LoraxsError, SearchInterruptedError, StudyError, UsageError, one_of
from loraxs_search.home import in_use
from loraxs_search.log.clock import steady_time
from loraxs_search.log.events import Phase
from loraxs_search.log.study_log import JOURNAL, STUDY_THREADS, SearchView, StudyLog
from loraxs_search.manifest import verify
from loraxs_search.methods import method_of
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.records.adapter import StartFrom
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import Registry
from loraxs_search.search.cluster.connection import connected, own_error
from loraxs_search.search.driver.result import SearchResult, lacks_baseline, open_tracker, record_end
from loraxs_search.search_space.load import Overrides, SpaceSource, load_space
from loraxs_search.search_space.space import Space
from loraxs_search.steering import foreseen, steered, take_commands
from loraxs_search.studies.folder import StudyFolder, studies_root
from loraxs_search.studies.mirror import fetch, mirrored
from loraxs_search.studies.record_files import StudyInfo
from loraxs_search.studies.storage import Storage
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tracking.store import ensure_store

if TYPE_CHECKING:
    from loraxs_search.search.hosts.pool import HostPool


def search_study(
    info: StudyInfo,
    space: Space,
    pool: HostPool,
    view: SearchView | None,
    stop: threading.Event | None,
    *,
    is_locked: bool = False,
) -> SearchResult:
    """Search a study on the hosts of `pool`, score the best trials, and return the result.

    Every stage can be repeated: the study folder has what a killed driver did.

    Args:
        stop: Set from anywhere, it ends the search cleanly, and those that run beside it.
        is_locked: Whether this process holds the study already.
    Raises:
        SearchInterruptedError: stopped before the budget was used.
        StudyError: nearly all of the latest trials failed for the same reason, or all have failed.
    """
    log, started_at = StudyLog(studies_root() / info.name / JOURNAL, info.name, view), steady_time()
    log.phase("loading the base model and the data")
    from loraxs_search.search.driver.session import open_study  # Ray Tune loads while the host does

    with open_study(info, space, pool, log, stop or threading.Event(), is_locked=is_locked) as session:
        session.begin(started_at)
        return session.run()


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
        UsageError: the space has faults.
        StudyError: the name is taken.
        SearchInterruptedError: stopped from outside; go on with `resume`.
    """
    loaded = load_space(space, overrides)
    uri = resolve_uri(tracking_uri)
    info = new_study(loaded, name, uri, storage)
    with _ready([loaded], uri, address, runtime_env, view) as pool:
        return search_study(info, loaded, pool, view, stop)


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
        UsageError: a space has faults, or the spaces do not agree in base, in how it is loaded, in precision, device or
            pack size.
        LoraxsError: studies ended with an error; the message has them all. The others have finished.
    """
    loaded = [load_space(space, overrides) for space in spaces]
    first, *others = [(space.name, _shared(space)) for space in loaded]
    for name, values in others:
        if unlike := next((key for key, value in values.items() if value != first[1][key]), None):
            raise UsageError(
                f"Spaces that are searched together must agree in {unlike}, but {first[0]} has {first[1][unlike]} and"
                f" {name} has {values[unlike]}.",
                hint="launch them one after the other, or give both the same",
            )
    uri = resolve_uri(tracking_uri)
    infos = [new_study(space, None, uri, storage) for space in loaded]
    stop = stop or threading.Event()
    seen_by = [views(info.name) if views else None for info in infos]
    with _ready(loaded, uri, address, runtime_env) as pool, ThreadPoolExecutor(len(infos), STUDY_THREADS) as threads:
        studies = zip(infos, loaded, seen_by, strict=True)
        futures = [threads.submit(search_study, info, space, pool, view, stop) for info, space, view in studies]
        try:
            wait(futures)
        except BaseException:
            stop.set()  # the studies end before Ray is stopped
            raise
        if errors := [error for future in futures if (error := future.exception()) is not None]:
            if len(errors) == 1:
                raise errors[0]
            errors = [own_error(error) for error in errors]
            stopped = all(isinstance(error, SearchInterruptedError) for error in errors)
            hints = [error.hint for error in errors if isinstance(error, LoraxsError) and error.hint]
            kind = SearchInterruptedError if stopped else LoraxsError
            raise kind("\n".join(map(str, errors)), hint="\n".join(dict.fromkeys(hints)))
        return [future.result() for future in futures]


def _shared(space: Space) -> dict[str, object]:
    """Return what spaces that are searched together must agree in, by its name in messages."""
    body = kind_of(space.task).model.body
    head = "no head" if body.num_outputs is None else f"a head with pooling {body.pooling}"
    return {
        "`base_model`": " ".join(filter(None, astuple(space.base_model))),
        "`search.precision`": space.search.precision,
        "`search.device`": space.search.device,
        "`search.pack_size`": space.search.pack_size,
        "how `task.kind` loads the base": ", ".join([body.auto_class, head, *(f"{n}={v}" for n, v in body.config)]),
    }


def new_study(loaded: Space, name: str | None, uri: str, storage: str | None = None) -> StudyInfo:
    """Return what a new study starts with, once its name is known to be free.

    That includes the version that the space's `start_from` means now.

    Raises:
        StudyError: the name is taken, here or in the storage.
        StorageError: the storage cannot be used.
        RegistryError: there is no adapter of that name.
        UsageError: it is of another method, or of one whose trials cannot start from an adapter.
    """
    place = Storage(storage) if storage is not None else None
    if name is None:  # a file may be named as no study can be
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", loaded.name).strip("_.-")[:75] or "space"
        name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    info = StudyInfo(
        name=name,
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
        if place.get(f"{info.name}/study.json") is not None:
            again = f"continue with `loraxs-search resume {info.name} --storage {place.uri}`"
            raise StudyError(
                f"Study {info.name!r} already exists in {place.uri}.", hint=f"{again}, or choose another with --name"
            )
    if loaded.start_from is None:
        return info

    adapter = Registry(uri).resolve(loaded.start_from)
    start = f"{adapter.task}:{adapter.version}"
    manifest = verify(pull(start, uri=uri))
    own = manifest.hyperparameters
    if own.method not in loaded.methods:
        raise UsageError(
            f"`start_from` must name an adapter of a method of the space ({one_of(loaded.methods)}), but {start} is"
            f" of {own.method}.",
            hint=f"name another adapter, or set `method: {own.method}`",
        )
    if not method_of(own).can_start:
        raise UsageError(
            f"`start_from` must name an adapter that trials can start from, but {start} is of {own.method}.",
            hint="leave it out, or name an adapter of lora-xs",
        )
    theirs, ours = manifest.task, loaded.task
    # Its head answers where the labels are the same, or the task is.
    with_head = theirs.kind == ours.kind and theirs.labels == ours.labels
    with_head = with_head and bool(ours.labels or theirs.name == ours.name)
    return replace(
        info, start_from=StartFrom(start, adapter.digest, manifest.base_digest, own, with_head, theirs.pooling)
    )


@contextlib.contextmanager
def _ready(
    spaces: Sequence[Space],
    tracking_uri: str,
    address: str | None,
    runtime_env: str | None,
    view: SearchView | None = None,
) -> Iterator[HostPool]:
    """Connect to Ray and check MLflow, both at once, then all nodes; yield hosts for the spaces.

    The first host loads while MLflow is still asked.

    Raises:
        ClusterError, TrackingError: one of them does not answer, or a node cannot run trials.
    """
    if view is not None:
        installing = ", which first makes the environment on every node" if runtime_env else ""
        view.happened(Phase(text=f"starting Ray{installing}"))
    with in_use(), ThreadPoolExecutor(1, "store") as beside:
        store = beside.submit(ensure_store, tracking_uri)
        with connected(address, runtime_env=runtime_env):
            from loraxs_search.search.cluster.doctor import check_nodes
            from loraxs_search.search.hosts.host_actor import host_config
            from loraxs_search.search.hosts.pool import HostPool

            if address is not None:
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
    uri, study = folder.store_uri(), foreseen(folder)
    asks_for_more = study.journal.is_reopened or study.is_to_reopen
    if folder.candidates() is not None and not asks_for_more and not lacks_baseline(folder):
        # MLflow and the study's copy get what is still missing there.
        with (
            folder.lock(),
            mirrored(folder, lambda: None) as mirror,
            contextlib.closing(open_tracker(folder, uri, mirror)) as tracker,
        ):
            take_commands(steered(folder))
            result = record_end(folder, folder.journal())
            tracker.drain()
            return result
    space = replace(folder.space(), search=study.plan)
    # The lock before Ray is started: commands that come now wait for this driver.
    with folder.lock(), _ready([space], uri, address, runtime_env, view) as pool:
        return search_study(replace(folder.info, tracking_uri=uri), space, pool, view, stop, is_locked=True)
