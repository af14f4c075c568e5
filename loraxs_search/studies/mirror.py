"""A copy of a study folder in a storage, kept up while a driver works: what is copied, and which one is ahead."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from loraxs_search.errors import LoraxsError, StorageConflictError, StorageError, StudyError
from loraxs_search.home import paths_under
from loraxs_search.log.clock import Clock
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.lease import LEASE_S, Lease
from loraxs_search.studies.snapshots import is_kept, kept_paths
from loraxs_search.studies.storage import Storage

# What is copied, in this order: a copy that was cut short is one of an earlier moment. What belongs to one machine is
# not among it.
_ORDER = (
    *("tracking.", "space.", "identity.json", "assets/", "assets.json", "baselines."),
    *("snapshots/", "adapters/", "candidates-", "round.json", "journal.jsonl", "mlflow.offset", "confirmed/"),
    *("candidates.json", "study.json"),
)
# These grow while they are copied. Read before the others, they speak of nothing that is not copied with them; the
# offset before the events, as it may lag behind them and never run ahead.
READ_FIRST = ("mlflow.offset", "journal.jsonl")
_GROWING = "journal.jsonl"  # by whole lines: copied in parts; only the last one changes
PART_BYTES = 1 << 17
_IN_PARTS = b'"This file is copied in parts."\n'
_PART = re.compile(r"(?P<file>.+\.jsonl)\.\d{6}")


def _copy_order(key: str) -> int | None:
    """Return a file's place in the order of copying; None when it is not copied."""
    if any(part.startswith(".") for part in key.split("/")):
        return None
    return next((index for index, start in enumerate(_ORDER) if key.startswith(start)), None)


def files(path: Path) -> list[str]:
    """Return the keys of what is copied, in the order of copying."""
    return in_copy_order(str(file.relative_to(path)) for file in paths_under(path) if file.is_file())


def in_copy_order(keys: Iterable[str]) -> list[str]:
    """Return those of the keys that are copied, in the order of copying."""
    places = {key: place for key in keys if (place := _copy_order(key)) is not None}
    return sorted(places, key=lambda key: (places[key], key))


def parts(key: str, content: bytes, copied: int) -> Iterator[tuple[str, bytes]]:
    """Yield the objects that a file's content goes to, in order, of those behind what was copied before.

    One that grows beyond a part is in parts from then on, and its own object says so: cut short before that, the copy
    is one of an earlier moment.
    """
    whole = content[: content.rfind(b"\n") + 1]
    if key != _GROWING or len(whole) <= PART_BYTES:
        yield key, content
        return
    are_there = copied if copied > PART_BYTES else 0
    for number in range(are_there // PART_BYTES, -(-len(whole) // PART_BYTES)):
        yield f"{key}.{number:06d}", whole[number * PART_BYTES : (number + 1) * PART_BYTES]
    if not are_there:
        yield key, _IN_PARTS


def file_of(key: str) -> str:
    """Return the file that an object is of, or a part of."""
    return part["file"] if (part := _PART.fullmatch(key)) else key


def read_copy(storage: Storage, name: str, key: str) -> bytes | None:
    """Return a file of a study from its copy; None when there is none."""
    content = storage.get(f"{name}/{key}")
    if key != _GROWING or content != _IN_PARTS:
        return content
    content, number = b"", 0
    while len(content) == number * PART_BYTES and (part := storage.get(f"{name}/{key}.{number:06d}")):
        content, number = content + part, number + 1
    return content


def is_behind(path: Path, storage: Storage, name: str) -> bool:
    """Say whether the folder is behind the storage; a journal only ever grows.

    Raises:
        StudyError: each side holds what the other lacks.
    """
    here, there = _read(path / "journal.jsonl") or b"", read_copy(storage, name, "journal.jsonl") or b""
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


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


PATIENCE_S = 60.0


class Standstill:
    """Watches a copy: `moved` when something of it came through, `stuck` with a reason when not.

    Args:
        place: What is copied and where to, as shown to users.
    """

    def __init__(self, place: str, clock: Clock) -> None:
        self._place, self._clock = place, clock
        self._moved_at = clock.now()
        self._next_s = PATIENCE_S
        self._reason = ""

    def moved(self) -> str | None:
        """Something came through; return what to say if it was said that nothing did."""
        was_reported = self._reason != "" or self._next_s > PATIENCE_S
        self._moved_at, self._next_s, self._reason = self._clock.now(), PATIENCE_S, ""
        return f"the copy of {self._place} continues" if was_reported else None

    def stuck(self, reason: str) -> str | None:
        """Nothing came through; return what to say the first time."""
        is_news = self._reason == ""
        self._reason = reason
        return f"the copy of {self._place} waits, the search continues: {reason}" if is_news else None

    def overdue(self) -> str | None:
        """Return what to say where nothing has come through for a minute, and then for twice as long each time."""
        still_s = self._clock.now() - self._moved_at
        if still_s < self._next_s:
            return None
        self._next_s = 2 * still_s
        return (
            f"the copy of {self._place} has stood still for {still_s:.0f} s, the search continues: "
            f"{self._reason or 'the storage is slow'}; if this machine is lost, another continues from that copy"
        )


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
        clock = clock or Clock()
        self._lease = Lease(storage, folder.name, clock)
        self._standstill = Standstill(f"study {folder.name!r} in {storage.uri}", clock)
        self._seen: dict[str, tuple[int, int]] = {}
        self._copied_bytes: dict[str, int] = {}
        self._versions: dict[str, str] = {}
        self._copied = threading.Event()
        self._held = self._lease.held(self._beat)
        self._copier = threading.Thread(target=self._keep_copying, name="mirror", daemon=True)
        self._lease_trouble = ""
        self.lost_to: StudyError | None = None

    @property
    def is_sure(self) -> bool:
        """Whether no other driver can have taken over yet."""
        return self.lost_to is None and self._lease.is_sure

    def __enter__(self) -> Mirror:
        self._held.__enter__()
        self._standstill.moved()
        try:
            self._check_ahead()
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
        self._folder.inbox().take_from(self._storage, self._folder.name)
        keys = files(self._folder.path)
        first = {key: self._changed(key) for key in READ_FIRST}
        for key in keys:
            if is_kept(key):
                continue  # read after the last state of its trial, and written before it
            changed = {key: first[key] if key in first else self._changed(key)}
            kept = {} if changed[key][1] is None else {name: self._changed(name) for name in self._kept_beside(key)}
            for name, (stamp, content) in (kept | changed).items():
                if content is not None:
                    for part, its_content in parts(name, content, self._copied_bytes.get(name, 0)):
                        self._write(f"{self._folder.name}/{part}", its_content)
                    self._copied_bytes[name], self._seen[name] = content.rfind(b"\n") + 1, stamp
                    self._say(self._standstill.moved())
        self._say(self._standstill.moved())

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _write(self, key: str, content: bytes) -> None:
        for _ in range(_TRIES):
            self._check_held()
            try:
                self._versions[key] = self._storage.write(key, content, self._versions.get(key))
            except StorageConflictError:  # by a driver that was taken over, as this one may have been
                self._lease.renew()
                self._versions = self._storage.versions(self._folder.name)
            else:
                return
        raise StorageError(f"{key} must be this driver's to write, but something else writes it again and again.")

    def _check_held(self) -> None:
        if self.lost_to is not None:
            raise self.lost_to
        if not self._lease.is_sure:
            raise StorageError(
                f"A study's lease must be renewed within {LEASE_S:.0f} s, but could not be: {self._lease_trouble}"
            )
        self._lease.check()

    def _forget_foreign(self) -> bool:
        """Have what a driver wrote late, after this one took over, be written anew; return whether there is any."""
        there, start = self._storage.versions(self._folder.name), f"{self._folder.name}/"
        foreign = (key.removeprefix(start) for key, version in self._versions.items() if there.get(key) != version)
        names = {file_of(key) for key in foreign} & self._seen.keys()
        for name in names:
            del self._seen[name], self._copied_bytes[name]
        return bool(names)

    def _check_ahead(self) -> None:
        if is_behind(self._folder.path, self._storage, self._folder.name):
            raise StudyError(
                f"Study {self._folder.name!r} must be as its storage has it, but another driver continued with it.",
                hint=f"fetch it: `loraxs-search resume {self._folder.name} --storage {self._storage.uri}`",
            )

    def _kept_beside(self, key: str) -> list[str]:
        """Return the keys of the snapshots that are kept beside a trial's last one."""
        folder, _, name = key.rpartition("/")
        if folder != "snapshots" or self._folder.checkpoint_selection.checkpoint == "last":
            return []
        paths = kept_paths(self._folder.path / folder, name.removesuffix(".safetensors"))
        return [f"{folder}/{path.name}" for path in paths]

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
    def _keep_copying(self) -> None:
        while not self._copied.wait(MIRROR_EVERY_S) and self.lost_to is None:
            self._try_to_copy()

    def _try_to_copy(self, *, last: bool = False) -> bool:
        try:
            self.copy()
            if last and self._forget_foreign():
                self.copy()
        except StudyError as error:
            self._lose(error)
            return False
        except Exception as error:  # noqa: BLE001  # a disk, a storage: whatever it is, the next copy may come through
            self._say(self._standstill.stuck(_reason(error)))
            return False
        return True

    def _beat(self) -> None:
        if self.lost_to is not None:
            return
        self._say(self._standstill.overdue())
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

    def _say(self, text: str | None) -> None:
        if text is not None:
            _logger.warning("%s", text)


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
