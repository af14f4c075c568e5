"""A copy of a study folder in a storage, kept up while a driver works."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from loraxs_search.errors import LoraxsError, StudyError
from loraxs_search.studies.copies import READ_FIRST, files, is_behind
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.lease import Lease
from loraxs_search.studies.storage import Storage

MIRROR_EVERY_S = 5.0
_logger = logging.getLogger(__name__)


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
        there = files(self._folder.path)
        first = {key: self._changed(key) for key in READ_FIRST}
        for key in there:
            stamp, content = first[key] if key in first else self._changed(key)
            if content is not None:
                self._storage.put(f"{self._folder.name}/{key}", content)
                self._seen[key] = stamp

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _check_ahead(self) -> None:
        if is_behind(self._folder.path, self._storage, self._folder.name):
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
