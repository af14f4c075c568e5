"""One driver at a time for a study that machines share: numbered objects; the highest one has a heartbeat."""

from __future__ import annotations

import contextlib
import logging
import platform
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from loraxs_search.errors import LoraxsError, StorageConflictError, StudyError
from loraxs_search.home import create_atomic, disk_faults, home
from loraxs_search.log.clock import Clock
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.studies.storage import Storage

LEASE_S = 30.0
HEARTBEAT_EVERY_S = 5.0
_WATCH_EVERY_S = 1.0
_SEEN_FOR_S = 1.0  # how long it counts that nobody had taken over
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _LeaseInfo:
    """Who holds a lease.

    Args:
        place: What the kernel drew when it started, which tells machines of one name apart, the path of the state
            folder there, and its own id: two containers may each have one at the same path.
        beat: Counts its signs of life.
        released: It is at work no more.
    """

    token: str
    host: str
    place: str = ""
    beat: int = 0
    released: bool = False


class Lease:
    """Held by one driver, who renews it; one in which nothing was seen to change for 30 s may be taken over.

    Who takes it makes the object of the next generation, which the storage lets one of many do, and deletes the ones
    before: whoever held one of them finds it gone. How long nothing has changed is measured by the clock of who
    watches; clocks of two machines are never compared.

    Its methods may be called from several threads.
    """

    def __init__(self, storage: Storage, study: str, clock: Clock | None = None) -> None:
        self._storage, self._study, self._clock = storage, study, clock or Clock()
        self._info = _LeaseInfo(uuid.uuid4().hex, platform.node())
        self._generation, self._key = 0, ""  # the latter of its object
        self._version: str | None = None
        self._renewed_at = self._seen_at = float("-inf")
        self._lock = threading.RLock()

    @property
    def is_sure(self) -> bool:
        """Whether no other driver can have taken over yet: it was renewed within the time that others wait."""
        return self._clock.now() - self._renewed_at < LEASE_S

    def take(self) -> None:
        """Become the holder, after watching for up to 30 s whether another one is at work.

        One of this machine and home is not watched: who asks holds the study's lock there.

        Raises:
            StudyError: another driver holds it.
        """
        path, boot = home() / ".home-id", Path("/proc/sys/kernel/random/boot_id")
        if not path.exists():
            create_atomic(path, uuid.uuid4().hex)  # of two at once the first one stands
        with disk_faults(path):
            started = boot.read_text().strip() if boot.exists() else str(uuid.getnode())
            self._info = replace(self._info, place=f"{started} {home()} {path.read_text()}")
        seen = generation, content = self._latest()
        holder = _holder(content)
        is_free = holder is not None and (holder.released or holder.place == self._info.place)
        if content is not None and not is_free:
            host, seen_at = "another machine" if holder is None else holder.host, self._clock.now()
            wait = "a driver on %s held study %r: watching for %.0f s whether it still does"
            _logger.warning(wait, host, self._study, LEASE_S)
            asked_at = seen_at
            while asked_at - seen_at < LEASE_S:
                self._clock.sleep(_WATCH_EVERY_S)
                asked_at, latest = self._clock.now(), self._latest()
                if (now := _holder(latest[1])) is not None and now.released:
                    generation = latest[0]
                    break
                if latest != seen:
                    raise self._taken(f"one on {host} is at work")
        self._generation, began = generation + 1, self._clock.now()
        self._key = f"{self._study}/lease/{self._generation:08d}.json"
        self._version = self._storage.create(self._key, to_json(self._info).encode())
        if self._version is None:
            self._version = self._own_version()
        self._renewed_at = began
        for older, key in self._generations().items():
            if older < self._generation:
                self._storage.delete(key)

    def check(self) -> None:
        """See in the storage that no driver of a later generation has taken over; what was just seen counts.

        Raises:
            StudyError: one has.
            StorageError: the storage cannot be asked.
        """
        with self._lock:
            if (now := self._clock.now()) - self._seen_at >= _SEEN_FOR_S:
                if max(self._generations(), default=0) > self._generation:
                    raise self._lost()
                self._seen_at = now

    def renew(self) -> None:
        """Say that the driver is still at work.

        Raises:
            StudyError: another driver has taken the lease.
        """
        with self._lock:
            began, self._seen_at = self._clock.now(), float("-inf")
            self.check()
            self._info = replace(self._info, beat=self._info.beat + 1)
            self._write_info()
            self._renewed_at = began

    def release(self) -> None:
        """Let another driver continue at once; if the storage is unreachable, that driver waits as after a kill."""
        with self._lock, contextlib.suppress(LoraxsError):
            self._info = replace(self._info, released=True)
            self._write_info()

    @classmethod
    def holder_elsewhere(cls, uri: str, study: str) -> str:
        """Return the machine of a driver that holds a study, has not said that it ended, and is not this machine.

        It may have been killed. Empty where there is none, or the storage does not answer, or is not to be asked here.
        """
        with contextlib.suppress(LoraxsError):
            holder = _holder(cls(Storage(uri), study)._latest()[1])
            if holder is not None and not holder.released and holder.host != platform.node():
                return holder.host
        return ""

    @contextlib.contextmanager
    def held(self, beat: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold it, renewed by a thread.

        Args:
            beat: Called by that thread at each sign of life, and renews it; by default nothing but that is done.
        Raises:
            StudyError: another driver holds it.
        """
        self.take()
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(HEARTBEAT_EVERY_S):
                with contextlib.suppress(LoraxsError):
                    (beat or self.renew)()

        heart = threading.Thread(target=keep, name="lease", daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
            self.release()

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _write_info(self) -> None:
        content = to_json(self._info).encode()
        try:
            self._version = self._storage.write(self._key, content, self._version)
        except StorageConflictError:  # taken over, or written by an earlier try of this driver
            self._version = self._own_version()
            self._version = self._storage.write(self._key, content, self._version)

    def _own_version(self) -> str:
        version = self._storage.versions(f"{self._study}/lease").get(self._key)
        holder = _holder(self._storage.get(self._key))
        if version is None or holder is None or holder.token != self._info.token:
            raise self._lost()
        return version

    def _latest(self) -> tuple[int, bytes | None]:
        keys = self._generations()
        return (latest := max(keys, default=0)), self._storage.get(keys[latest]) if keys else None

    def _generations(self) -> dict[int, str]:
        names = {
            key.rpartition("/")[2].removesuffix(".json"): key for key in self._storage.keys(f"{self._study}/lease")
        }
        return {int(name): key for name, key in names.items() if name.isdecimal()}

    def _lost(self) -> StudyError:
        content = self._latest()[1]
        if content is None:
            return self._taken("the lease was removed")
        holder = _holder(content)  # None if its file system shows it before it is whole
        return self._taken("another one took over" if holder is None else f"one on {holder.host} took over")

    def _taken(self, why: str) -> StudyError:
        return StudyError(
            f"Study {self._study!r} must have one driver at a time, but {why}.",
            hint=f"let it end, or stop it: it is taken over once it has said nothing for {LEASE_S:.0f} s",
        )


def _holder(content: bytes | None) -> _LeaseInfo | None:
    """Return the holder that an object names; None for one that is being written, or is of another kind."""
    try:
        return from_json(_LeaseInfo, content) if content else None
    except ValueError:
        return None
