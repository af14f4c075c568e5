"""Copies of a study folder in a storage, kept while a driver works, and taken up by a driver on another machine."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from loraxs_search.errors import LoraxsError, StudyError, unknown_name
from loraxs_search.home import ensure_dir, write_atomic
from loraxs_search.mlflow_uri import resolve_uri, sqlite_path
from loraxs_search.records import from_json, to_json
from loraxs_search.studies.folder import StudyFolder, StudyInfo, studies_root
from loraxs_search.studies.lease import Lease
from loraxs_search.studies.storage import Storage

MIRROR_EVERY_S = 5.0
_logger = logging.getLogger(__name__)

# What is copied, in this order: a copy that was cut short is one of an earlier moment. The sampler's database is not
# among it, as it is rebuilt from the journal, nor what belongs to one machine.
_ORDER = (
    *("tracking.", "space.yaml", "snapshots/", "adapters/", "journal.jsonl"),
    *("confirmed/", "candidates.json", "study.json"),
)
# These grow while they are copied. Read before the others, they speak of nothing that is not copied with them; the
# offset before the events, as it may lag behind them and never run ahead.
_READ_FIRST = ("tracking.offset", "tracking.jsonl", "journal.jsonl")
_OF_ONE_STORE = ("tracking.offset", "tracking.runs.jsonl")


class Mirror:
    """Keeps a study's copy, off the control loop, and its lease; both end with the context.

    A storage that is away is tried again and stops no search.

    Args:
        lost: Called when another driver has taken over.

    Raises:
        StudyError: another driver is at work, or has gone on with the study since this folder was fetched.
        StorageError: the storage cannot be used.
    """

    def __init__(self, folder: StudyFolder, storage: Storage, lost: Callable[[], None]) -> None:
        self._folder, self._storage, self._lost = folder, storage, lost
        self._lease = Lease(storage, folder.name)
        self._seen: dict[str, tuple[int, int]] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="mirror", daemon=True)
        self.lost_to: LoraxsError | None = None

    def __enter__(self) -> Mirror:
        self._lease.take()
        try:
            self._check_ahead()
            self.copy()
        except BaseException:
            self._try(self._lease.release)
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        if self.lost_to is None:
            self._try(self.copy)
            self._try(self._lease.release)

    def copy(self) -> None:
        """Copy what has changed since the last time."""
        there = _files(self._folder.path)
        first = {key: self._changed(key) for key in _READ_FIRST}
        for key in there:
            stamp, content = first[key] if key in first else self._changed(key)
            if content is not None:
                self._storage.put(f"{self._folder.name}/{key}", content)
                self._seen[key] = stamp

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _check_ahead(self) -> None:
        if _newer(self._folder.path, self._storage, self._folder.name):
            raise StudyError(
                f"Study {self._folder.name!r} must be as its storage has it, but another driver went on with it.",
                hint=f"fetch it: `loraxs-search resume {self._folder.name} --storage {self._storage.uri}`",
            )

    def _changed(self, key: str) -> tuple[tuple[int, int], bytes | None]:
        """Return a file's stamp and, if it is another than when it was copied, its content; the stamp is the older."""
        try:
            path = self._folder.path / key
            status = path.stat()
            stamp = status.st_size, status.st_mtime_ns
            return stamp, None if self._seen.get(key) == stamp else path.read_bytes()
        except FileNotFoundError:  # replaced at this moment
            return (0, 0), None

    def _keep(self) -> None:
        away = False
        while not self._ending.wait(MIRROR_EVERY_S):
            fine = self._try(self._lease.renew, quiet=away) and self._try(self.copy, quiet=away)
            if self.lost_to is not None:
                self._lost()
                return
            away = not fine

    def _try(self, what: Callable[[], None], *, quiet: bool = False) -> bool:
        try:
            what()
        except StudyError as error:
            self.lost_to = error
            return False
        except LoraxsError as error:
            if not quiet:
                _logger.warning("the study's copy waits: %s", error.message)
            return False
        return True


@contextlib.contextmanager
def mirrored(folder: StudyFolder, lost: Callable[[], None]) -> Iterator[Mirror | None]:
    """Keep the copy of a study that has a storage."""
    if folder.info.storage is None:
        yield None
        return
    with Mirror(folder, Storage(folder.info.storage), lost) as mirror:
        yield mirror


def check_new_in(storage: Storage, name: str) -> None:
    """Refuse a name that a study in the storage has.

    Raises:
        StudyError: it has.
    """
    if storage.get(f"{name}/study.json") is not None:
        raise StudyError(
            f"Study {name!r} already exists in {storage.uri}.",
            hint=f"go on with `loraxs-search resume {name} --storage {storage.uri}`, or choose another with --name",
        )


def fetch(name: str, storage: Storage) -> StudyFolder:
    """Bring the study folder up to the storage's copy, if that is ahead of it or there is none here.

    An embedded MLflow store stays on the machine that had it: on another one the study's records are written anew into
    its own.

    Raises:
        StudyError: the storage has no such study, another driver is at work, or both sides went on.
    """
    content = storage.get(f"{name}/study.json")
    if content is None:
        known = sorted({key.partition("/")[0] for key in storage.keys("") if key.endswith("/study.json")})
        raise StudyError(unknown_name("study", name, known), hint=f"these are the studies in {storage.uri}")
    Lease(storage, name).check_free()
    info = from_json(StudyInfo, content)
    path = studies_root() / name
    if StudyFolder.exists(name):
        folder = StudyFolder.open(name)
        if folder.info.study_id != info.study_id:
            raise StudyError(
                f"Study {name!r} of {storage.uri} must not meet another of its name, but {path} is one.",
                hint="set LORAXS_HOME to another folder, or move that one away",
            )
        if not _newer(path, storage, name):
            return folder
        with folder.lock():
            _download(name, storage, path)
    else:
        _download(name, storage, path)
    _settle(path, replace(info, storage=storage.uri))
    return StudyFolder(path)


def _newer(path: Path, storage: Storage, name: str) -> bool:
    """Say whether the storage is ahead of the folder; a journal only ever grows."""
    here, there = _read(path / "journal.jsonl") or b"", storage.get(f"{name}/journal.jsonl") or b""
    here, there = here[: here.rfind(b"\n") + 1], there[: there.rfind(b"\n") + 1]
    if here.startswith(there):
        return (
            here == there and not (path / "candidates.json").exists() and bool(storage.get(f"{name}/candidates.json"))
        )
    if there.startswith(here):
        return True
    raise StudyError(
        f"Of study {name!r} one side must be ahead, but {path} and {storage.uri} each hold what the other lacks.",
        hint="keep one: move the folder away to go on with the storage's",
    )


def _download(name: str, storage: Storage, path: Path) -> None:
    for leftover in path.glob("optuna.db*"):
        leftover.unlink()  # behind the journal that comes; rebuilt from it
    shutil.rmtree(path / "tune", ignore_errors=True)
    ensure_dir(path / "snapshots")
    keys = [key.removeprefix(f"{name}/") for key in storage.keys(name)]
    for key in sorted((key for key in keys if _place(key) is not None), key=lambda key: _place(key) or 0):
        if key != "study.json" and (content := storage.get(f"{name}/{key}")) is not None:
            write_atomic(path / key, content)


def _settle(path: Path, info: StudyInfo) -> None:
    """Write `study.json`, with which the study exists here."""
    embedded = sqlite_path(info.tracking_uri)
    if embedded is not None and not embedded.exists():
        info = replace(info, tracking_uri=resolve_uri())
        for name in _OF_ONE_STORE:
            (path / name).unlink(missing_ok=True)
    write_atomic(path / "study.json", to_json(info, indent=2))


def _place(key: str) -> int | None:
    """Return a file's place in the order of copying; None when it is not copied."""
    if any(part.startswith(".") for part in key.split("/")):
        return None
    return next((place for place, start in enumerate(_ORDER) if key.startswith(start)), None)


def _files(path: Path) -> list[str]:
    keys = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
    return sorted((key for key in keys if _place(key) is not None), key=lambda key: (_place(key), key))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
