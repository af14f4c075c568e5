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
from loraxs_search.assets import START
from loraxs_search.errors import BaseModelError, HomeError, LoraxsError, SearchInterruptedError, UsageError, one_of
from loraxs_search.home import in_use
from loraxs_search.log.clock import steady_time
from loraxs_search.log.events import Phase, SearchFinished
from loraxs_search.log.study_log import STUDY_THREADS, SearchView, StudyLog
from loraxs_search.methods import method_of
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.records.adapter import AdapterRef, StartFrom
from loraxs_search.records.host import HostInfo
from loraxs_search.records.task import Task
from loraxs_search.registry.manifest import verify
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import Registry
from loraxs_search.search.cluster.connection import connected, own_error
from loraxs_search.search.driver.result import (
    SearchResult,
    close_finished,
    keep_report,
    lacks_baseline,
    open_tracker,
    summary_of,
)
from loraxs_search.search_space.load import Overrides, SpaceSource, open_space
from loraxs_search.search_space.space import Space, trial_shapes
from loraxs_search.steering import asks_for_more, foreseen
from loraxs_search.studies.folder import StudyFolder, studies_root
from loraxs_search.studies.info import StudyInfo
from loraxs_search.studies.lookup import store_of
from loraxs_search.studies.mirror import check_new_in, fetch, mirrored
from loraxs_search.studies.storage import Storage
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tracking.store import ensure_store

if TYPE_CHECKING:
    from loraxs_search.search.hosts.pool import HostPool
    from loraxs_search.search.hosts.study_actors import StudyActors


def resolve_start(space: Space, uri: str) -> StartFrom | None:
    """Return which version a space's `start_from` means now; None if it names none.

    Raises:
        RegistryError: there is no such adapter.
        UsageError: it is of another method, or of one whose trials cannot start from an adapter.
    """
    if space.start_from is None:
        return None
    adapter = Registry(uri).resolve(space.start_from)
    ref = AdapterRef(f"{adapter.task}:{adapter.version}", adapter.digest)
    manifest = verify(pull(ref.name, uri=uri))
    own = manifest.hyperparameters
    if own.method not in space.methods:
        raise UsageError(
            f"`start_from` must name an adapter of a method of the space ({one_of(space.methods)}), but {ref.name} is"
            f" of {own.method}.",
            hint=f"name another adapter, or set `method: {own.method}`",
        )
    if not method_of(own).can_start:
        raise UsageError(
            f"`start_from` must name an adapter that trials can start from, but {ref.name} is of {own.method}.",
            hint="leave it out, or name an adapter of lora-xs",
        )
    with_head = has_same_answers(manifest.task, space.task)
    return StartFrom(ref, manifest.base_digest, own, with_head, manifest.task.pooling)


def has_same_answers(task: Task, other: Task) -> bool:
    """Whether one task's head answers the other: the labels are the same, or the task is."""
    return task.kind == other.kind and task.labels == other.labels and bool(task.labels or task.name == other.name)


def with_pooling(study: StudyInfo, space: Space, info: HostInfo) -> tuple[StudyInfo, Space]:
    """Return study and space with `pooling: auto` resolved on the base, as a study keeps it.

    A head that reads another pool is no start for trials.
    """
    task = replace(space.task, pooling=info.pooling) if space.task.pooling == "auto" else space.task
    start = study.start_from
    if start is not None:
        start = replace(start, with_head=start.with_head and start.pooling == task.pooling)
    return replace(study, task=task, start_from=start), replace(space, task=task)


def check_start(space: Space, study: StudyInfo, info: HostInfo) -> None:
    """Refuse a start that some trial of the space could not begin at.

    Raises:
        BaseModelError: it is of another base.
        UsageError: rank, modules or factors do not fit.
    """
    start = study.start_from
    if start is None:
        return
    if start.base_digest != info.base.weight_digest:
        raise BaseModelError(
            f"`start_from` must name an adapter on this base, with weights {info.base.weight_digest[:16]}..., but"
            f" {start.adapter.name} is on weights {start.base_digest[:16]}....",
            hint="name an adapter of the same base at the same revision",
        )
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


def keep_start(folder: StudyFolder) -> str | None:
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


class Driver:
    """Runs one study on Ray. Every stage can be repeated: the study folder has what a killed driver did.

    Args:
        stop: Set from anywhere, it ends the search cleanly, and those that run beside it.
        is_locked: Whether this process holds the study already.
    """

    def __init__(
        self, info: StudyInfo, space: Space, view: SearchView | None, stop: threading.Event, *, is_locked: bool = False
    ) -> None:
        self._info, self._space, self._stop, self._is_locked = info, space, stop, is_locked
        self._lost_lease = threading.Event()  # which stops no search beside this one
        self._log = StudyLog(studies_root() / info.name / "journal.jsonl", info.name, view)
        self._started_at = steady_time()

    def run(self, pool: HostPool) -> SearchResult:
        """Search on the hosts of `pool`, score the best trials, and return the result.

        Raises:
            SearchInterruptedError: stopped before the budget was used.
            TrialsFailError: nearly all of the latest trials failed for the same reason, or all have failed.
        """
        self._log.phase("loading the base model and the data")
        from loraxs_search.search.driver import session  # noqa: F401  # Ray Tune and Optuna load while the host does
        from loraxs_search.search.hosts.study_actors import StudyActors

        with self._log.saying_warnings():
            folder = self._begun_folder()
            recorded = folder.identity() if folder else None
            actors = StudyActors(self._info, self._space, pool, self.check_stop, recorded)
            try:
                self._info, self._space = with_pooling(self._info, self._space, actors.info)
                check_start(self._space, self._info, actors.info)
                actors.prepare_factors(self._log.phase)
                if (folder := self._begun_folder()) is None:  # `create` refuses a name that was taken in the meantime
                    folder = StudyFolder.create(self._info, self._space.text, resolved=self._space)
                return self.search(actors, folder)
            finally:
                actors.close()

    def search(self, actors: StudyActors, folder: StudyFolder) -> SearchResult:
        """Search an open study: lock it, have its copy and MLflow follow, and record how it ends."""
        from loraxs_search.search.driver.session import SearchSession

        with (
            contextlib.nullcontext() if self._is_locked else folder.lock(),
            mirrored(folder, self._lost_lease.set) as mirror,
        ):
            if folder.identity() is None:
                folder.write_identity(actors.info.identity)
            if lacks_baseline(folder):
                folder.set_candidates_aside()
            actors.start_from = keep_start(folder)
            self._log.refresh()
            tracker = open_tracker(folder, self._info.tracking_uri, mirror)
            try:
                session = SearchSession(
                    self._info,
                    self._space,
                    folder,
                    self._log,
                    actors,
                    self.is_stopped,
                    started_at=self._started_at,
                    run_of=tracker.run_id,
                )
                result = session.run()
                keep_report(folder, self._log)
                self._log.append(SearchFinished(state="FINISHED", summary=summary_of(result)))
                return result
            except BaseException as error:
                if mirror is not None and mirror.lost_to is not None:
                    raise mirror.lost_to from error
                stopped = isinstance(error, (SearchInterruptedError, KeyboardInterrupt))
                with contextlib.suppress(HomeError):  # of a disk that may be full, which the search has ended for
                    notice = {"notice": str(own_error(error))}
                    self._log.append(SearchFinished(state="KILLED" if stopped else "FAILED", summary=notice))
                raise
            finally:
                self._log.close()  # the log may be another driver's soon, and MLflow gets nothing from here on
                self._log.phase("writing the last records to MLflow")
                if mirror is not None and mirror.lost_to is not None:
                    tracker.abandon()
                else:
                    tracker.close()

    def is_stopped(self) -> bool:
        """Whether this search is to end, with all that run together or alone."""
        return self._stop.is_set() or self._lost_lease.is_set()

    def check_stop(self) -> None:
        """Refuse to go on once the search was stopped from outside.

        Raises:
            SearchInterruptedError: it was.
        """
        if self.is_stopped():
            raise SearchInterruptedError.of([] if self._begun_folder() is None else [self._info.name])

    def _begun_folder(self) -> StudyFolder | None:
        """Return the study's folder, where an earlier driver began it."""
        if StudyFolder.exists(self._info.name):
            folder = StudyFolder.open(self._info.name)
            if folder.info.study_id == self._info.study_id:
                return folder
        return None


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
    with _ready([loaded], uri, address, runtime_env, view) as pool:
        return Driver(info, loaded, view, stop or threading.Event()).run(pool)


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
        Driver(info, space, views(info.name) if views else None, stop)
        for info, space in zip(infos, loaded, strict=True)
    ]
    with _ready(loaded, uri, address, runtime_env) as pool, ThreadPoolExecutor(len(drivers), STUDY_THREADS) as threads:
        futures = [threads.submit(driver.run, pool) for driver in drivers]
        try:
            wait(futures)
        except BaseException:
            stop.set()  # the studies end before Ray is stopped
            raise
        if errors := [error for future in futures if (error := future.exception()) is not None]:
            raise _joined(errors)
        return [future.result() for future in futures]


def _check_together(spaces: Sequence[Space]) -> None:

    def body(space: Space) -> str:
        body = kind_of(space.task).model.body
        head = "no head" if body.num_outputs is None else f"a head with pooling {body.pooling}"
        return ", ".join([body.auto_class, head, *(f"{name}={value}" for name, value in body.config)])

    first, *others = spaces
    values: dict[str, Callable[[Space], object]] = {
        "`base_model`": lambda space: " ".join(filter(None, astuple(space.base_model))),
        "`search.precision`": lambda space: space.search.precision,
        "`search.device`": lambda space: space.search.device,
        "`search.pack_size`": lambda space: space.search.pack_size,
        "how `task.kind` loads the base": body,
    }
    for name, of in values.items():
        if unlike := next((space for space in others if of(space) != of(first)), None):
            raise UsageError(
                f"Spaces that are searched together must agree in {name}, but {first.name} has {of(first)} and"
                f" {unlike.name} has {of(unlike)}.",
                hint="launch them one after the other, or give both the same",
            )


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
        check_new_in(place, info.name)
    return replace(info, start_from=resolve_start(loaded, uri))


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
            from loraxs_search.search.hosts.host_config import host_config
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
    info = replace(folder.info, tracking_uri=store_of(folder))
    has_ended = folder.candidates() is not None
    study = foreseen(folder)
    is_done = has_ended and not asks_for_more(study)
    if is_done and not lacks_baseline(folder):
        return close_finished(folder)
    space = folder.space()
    space = replace(space, search=study.plan)
    # The lock before Ray is started: commands that come now wait for this driver.
    with folder.lock(), _ready([space], info.tracking_uri, address, runtime_env, view) as pool:
        return Driver(info, space, view, stop or threading.Event(), is_locked=True).run(pool)
