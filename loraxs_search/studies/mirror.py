"""A copy of a study folder in a storage: what is copied, which one is ahead, keeping it up, and fetching it."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from loraxs_search.errors import LoraxsError, StorageConflictError, StorageError, StudyError, unknown_name
from loraxs_search.home import ensure_dir, paths_under, write_atomic
from loraxs_search.log.clock import Clock
from loraxs_search.log.study_log import JOURNAL, StudyLog
from loraxs_search.mlflow_uri import resolve_uri, sqlite_path
from loraxs_search.records.codec import to_json
from loraxs_search.studies.folder import StudyFolder, studies_root
from loraxs_search.studies.lease import LEASE_S, Lease
from loraxs_search.studies.record_files import StudyInfo
from loraxs_search.studies.snapshots import KEPT
from loraxs_search.studies.storage import Storage

# What is copied, in this order: a copy that was cut short is one of an earlier moment. What belongs to one machine is
# not among it.
_ORDER = (
    *("space.", "identity.json", "assets/", "assets.json", "baselines."),
    *("snapshots/", "adapters/", "round.json", JOURNAL, "mlflow.offset", "confirmed/"),
    *("candidates.json", "study.json"),
)
# These grow while they are copied. Read before the others, they speak of nothing that is not copied with them; the
# offset before the events, as it may lag behind them and never run ahead.
_READ_FIRST = ("mlflow.offset", JOURNAL)


def _in_copy_order(keys: Iterable[str]) -> list[str]:
    """Return those of the keys that are copied, in the order of copying."""
    seen = [key for key in keys if not any(part.startswith(".") for part in key.split("/"))]
    places = {key: place for key in seen for place, start in reversed([*enumerate(_ORDER)]) if key.startswith(start)}
    return sorted(places, key=lambda key: (places[key], key))


def is_behind(path: Path, storage: Storage, name: str) -> bool:
    """Say whether the folder is behind the storage; a journal only ever grows.

    Raises:
        StudyError: each side holds what the other lacks.
    """
    journal = path / JOURNAL
    here, there = journal.read_bytes() if journal.exists() else b"", storage.get(f"{name}/{JOURNAL}") or b""
    here, there = here[: here.rfind(b"\n") + 1], there[: there.rfind(b"\n") + 1]
    if here.startswith(there):
        return (
            here == there and not (path / "candidates.json").exists() and bool(storage.get(f"{name}/candidates.json"))
        )
    if there.startswith(here):
        return True
    raise StudyError(
        f"Of study {name!r} one side must be ahead, but {path} and {storage.uri} each hold what the other lacks.",
        hint="keep one: move the folder away to continue with the storage's",
    )


PATIENCE_S = 60.0
MIRROR_EVERY_S = 5.0
_TRIES = 3
_logger = logging.getLogger(__name__)


class Mirror:
    """Keeps a study's copy, off the control loop, and its lease, each in a thread; both end with the context.

    A storage that is away or slow is tried again and stops no search; who watches it is warned. What is written there
    replaces only what this driver has seen there, and only while no other one can have taken over.

    Args:
        lost: Called when another driver has taken over.

    Raises:
        StudyError: another driver is at work, or has continued with the study since this folder was fetched.
        StorageError: the storage cannot be used.
    """

    def __init__(
        self, folder: StudyFolder, storage: Storage, lost: Callable[[], None], clock: Clock | None = None
    ) -> None:
        self._folder, self._storage, self._lost = folder, storage, lost
        self._clock, self._place = clock or Clock(), f"study {folder.name!r} in {storage.uri}"
        self._lease = Lease(storage, folder.name, self._clock)
        # When something of the copy came through, after how long a standstill is warned of, and why it stands still.
        self._moved_at, self._next_s, self._trouble = self._clock.now(), PATIENCE_S, ""
        self._seen: dict[str, tuple[int, int]] = {}
        self._versions: dict[str, str] = {}
        self._copied = threading.Event()
        self._held = self._lease.held(self._beat)

        def keep_copying() -> None:
            while not self._copied.wait(MIRROR_EVERY_S) and self.lost_to is None:
                self._try_to_copy()

        self._copier = threading.Thread(target=keep_copying, name="mirror", daemon=True)
        self._lease_trouble = ""
        self.lost_to: StudyError | None = None

    @property
    def is_sure(self) -> bool:
        """Whether no other driver can have taken over yet."""
        return self.lost_to is None and self._lease.is_sure

    def __enter__(self) -> Mirror:
        self._held.__enter__()
        self._moved()
        try:
            if is_behind(self._folder.path, self._storage, self._folder.name):
                raise StudyError(
                    f"Study {self._folder.name!r} must be as its storage has it, but another driver continued with it.",
                    hint=f"fetch it: `loraxs-search resume {self._folder.name} --storage {self._storage.uri}`",
                )
            self._versions = self._storage.versions(self._folder.name)
            self.copy()
        except BaseException:
            self._held.__exit__(None, None, None)
            raise
        self._copier.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._copied.set()
        self._copier.join()
        if self.lost_to is None and not self._try_to_copy(last=True):
            _logger.warning(
                "study %r is not whole in %s: `loraxs-search resume %s` copies what it lacks",
                self._folder.name,
                self._storage.uri,
                self._folder.name,
            )
        self._held.__exit__(None, None, None)

    def copy(self) -> None:
        """Copy what has changed since the last time, and take the commands that people have left there.

        Raises:
            StudyError: another driver has taken over.
            StorageError: the storage cannot be written, or may be another driver's by now.
        """
        self._folder.inbox.take_from(self._storage)
        path, is_best = self._folder.path, self._folder.checkpoint_selection.checkpoint == "best"
        keys = _in_copy_order(str(file.relative_to(path)) for file in paths_under(path) if file.is_file())
        first = {key: self._changed(key) for key in _READ_FIRST}
        for key in keys:
            if KEPT in key:
                continue  # read after the last state of its trial, and written before it
            stamp, content = first[key] if key in first else self._changed(key)
            beside = list[str]()  # the snapshots that are kept beside a trial's last one
            if content is not None and is_best and key.startswith("snapshots/"):
                beside = [f"snapshots/{path.name}" for path in self._folder.snapshots.kept_paths(Path(key).stem)]
            changed = {**{name: self._changed(name) for name in beside}, key: (stamp, content)}
            for name, (its_stamp, its_content) in changed.items():
                if its_content is not None:
                    self._write(f"{self._folder.name}/{name}", its_content)
                    self._seen[name] = its_stamp
                    self._moved()
        self._moved()

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _moved(self) -> None:
        """Something came through; say so if it was said that nothing did."""
        if self._trouble or self._next_s > PATIENCE_S:
            _logger.warning("the copy of %s continues", self._place)
        self._moved_at, self._next_s, self._trouble = self._clock.now(), PATIENCE_S, ""

    def _write(self, key: str, content: bytes) -> None:
        for _ in range(_TRIES):
            if self.lost_to is not None:
                raise self.lost_to
            if not self._lease.is_sure:
                raise StorageError(
                    f"A study's lease must be renewed within {LEASE_S:.0f} s, but could not be: {self._lease_trouble}"
                )
            self._lease.check()
            try:
                self._versions[key] = self._storage.write(key, content, self._versions.get(key))
            except StorageConflictError:  # by a driver that was taken over, as this one may have been
                self._lease.renew()
                self._versions = self._storage.versions(self._folder.name)
            else:
                return
        raise StorageError(f"{key} must be this driver's to write, but something else writes it again and again.")

    def _changed(self, key: str) -> tuple[tuple[int, int], bytes | None]:
        """Return a file's stamp and, if it is another than when it was copied, its content; the stamp is the older."""
        try:
            path = self._folder.path / key
            status = path.stat()
            stamp = status.st_size, status.st_mtime_ns
            return stamp, None if self._seen.get(key) == stamp else path.read_bytes()
        except FileNotFoundError:  # replaced at this moment
            return (0, 0), None

    # ---- two threads -------------------------------------------------------------------------------------------------
    def _try_to_copy(self, *, last: bool = False) -> bool:
        try:
            self.copy()
            if last:  # what a driver wrote late, after this one took over, is written anew
                there, start = self._storage.versions(self._folder.name), f"{self._folder.name}/"
                foreign = {key.removeprefix(start) for key, known in self._versions.items() if there.get(key) != known}
                if names := foreign & self._seen.keys():
                    for name in names:
                        del self._seen[name]
                    self.copy()
        except StudyError as error:
            self._lose(error)
            return False
        except Exception as error:  # noqa: BLE001  # a disk, a storage: whatever it is, the next copy may come through
            if not self._trouble:
                _logger.warning("the copy of %s waits, the search continues: %s", self._place, _reason(error))
            self._trouble = _reason(error)
            return False
        return True

    def _beat(self) -> None:
        if self.lost_to is not None:
            return
        still_s = self._clock.now() - self._moved_at
        if still_s >= self._next_s:  # nothing came through for a minute, and then for twice as long each time
            self._next_s = 2 * still_s
            _logger.warning(
                "the copy of %s has stood still for %.0f s, the search continues: %s; if this machine is lost, another"
                " continues from that copy",
                *(self._place, still_s, self._trouble or "the storage is slow"),
            )
        try:
            self._lease.renew()
        except StudyError as error:
            self._lose(error)
        except Exception as error:  # noqa: BLE001  # it is tried again; once it is too late, the copy waits
            self._lease_trouble = _reason(error)

    def _lose(self, error: StudyError) -> None:
        if self.lost_to is None:
            self.lost_to = error
            self._lost()


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, LoraxsError) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def mirrored(folder: StudyFolder, lost: Callable[[], None]) -> Iterator[Mirror | None]:
    """Keep the copy of a study that has a storage."""
    if folder.info.storage is None:
        yield None
        return
    with Mirror(folder, Storage(folder.info.storage), lost) as mirror:
        yield mirror


# ---- on another machine ----------------------------------------------------------------------------------------------


def fetch(name: str, storage: Storage) -> StudyFolder:
    """Bring the study folder up to the storage's copy, if that is ahead of it or there is none here.

    One that began here and has not been copied yet is all here.

    An embedded MLflow store stays on the machine that had it: on another one the study's records are written anew into
    its own. So are they here, when others continued with the study meanwhile; those that it has change nothing.

    Raises:
        StudyError: the storage has no such study, it is of a later version, another driver is at work, or both sides
            continued.
    """
    content = storage.get(f"{name}/study.json")
    if content is None:
        if StudyFolder.exists(name):
            folder = StudyFolder.open(name)
            if (folder.info.storage or "").rstrip("/") == storage.uri.rstrip("/"):
                return folder  # its driver died, or was refused, before the first copy was whole
        known = sorted({key.partition("/")[0] for key in storage.keys("") if key.endswith("/study.json")})
        raise StudyError(unknown_name("study", name, known), hint=f"these are the studies in {storage.uri}")
    place = f"{storage.uri}/{name}"
    with contextlib.ExitStack() as held:
        info = StudyInfo.parse(content, place)
        here = StudyFolder.open(name) if StudyFolder.exists(name) else None
        if here is not None:
            if here.info.study_id != info.study_id:
                raise StudyError(
                    f"Study {name!r} of {storage.uri} must not meet another of its name, but {here.path} is one.",
                    hint="set LORAXS_HOME to another folder, or move that one away",
                )
            held.enter_context(here.lock())
        held.enter_context((lease := Lease(storage, name)).held())
        path = studies_root() / name
        if here is not None and not is_behind(path, storage, name):
            return here
        shutil.rmtree(path / "tune", ignore_errors=True)
        # Of an embedded store, what came would speak of another machine's, whose path may be that of one here.
        without = () if sqlite_path(info.tracking_uri) is None else ("mlflow.offset",)
        for key in without:  # first: a fetch that is cut short behind the journal is not begun again
            (path / key).unlink(missing_ok=True)
        ensure_dir(path / "snapshots")
        keys = {key.removeprefix(f"{name}/") for key in storage.keys(name)} - {"study.json", *without}
        for key in _in_copy_order(keys):
            if (copied := storage.get(f"{name}/{key}")) is not None:
                write_atomic(path / key, copied)
        records = StudyLog(path / JOURNAL).records
        # A copy that was cut short may have one of a trial yet unknown: the trial that gets its number here is another.
        for snapshot in (path / "snapshots").iterdir():
            if snapshot.name.partition(".")[0] not in records:
                snapshot.unlink()
        lease.check()
        info = replace(StudyInfo.parse(storage.get(f"{name}/study.json") or content, place), storage=storage.uri)
        embedded = sqlite_path(info.tracking_uri)
        if embedded is not None and not embedded.exists():
            info = replace(info, tracking_uri=resolve_uri())
        write_atomic(path / "study.json", to_json(info, indent=2))  # with which the study exists here
        return StudyFolder(path)
