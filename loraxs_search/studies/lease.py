"""One driver at a time for a study that machines share: an object with a heartbeat."""

from __future__ import annotations

import platform
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from loraxs_search.errors import StudyError
from loraxs_search.home import home
from loraxs_search.records import from_json, to_json
from loraxs_search.studies.storage import Storage

LEASE_S = 30.0
_SETTLE_S = 1.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Args:
        boot: Tells machines of one name apart: what the kernel drew when it started.
        at: Last heartbeat, seconds since 1970.
    """

    token: str
    host: str
    boot: str
    home: str
    at: float

    @property
    def place(self) -> tuple[str, str, str]:
        """Where there is a lock beside the lease."""
        return self.host, self.boot, self.home


class Lease:
    """Held by one driver, who renews it; one that was not renewed for 30 s may be taken over.

    A store of objects cannot compare and swap: who takes a lease looks again a second later whether it is still the
    holder, and renewing looks too, so that of two who took it at once one stops.
    """

    def __init__(self, storage: Storage, study: str) -> None:
        self._storage, self._study = storage, study
        self._key = f"{study}/lease.json"
        self._mine = Holder(uuid.uuid4().hex, platform.node(), _boot(), str(home()), 0.0)

    def check_free(self) -> None:
        """See that no other driver is at work.

        One of this machine and home that is not at work any more does not count: who asks holds the study's lock
        there, or will find it held.

        Raises:
            StudyError: another driver holds it.
        """
        holder = self._holder()
        if holder is None or holder.place == self._mine.place:
            return
        age_s = time.time() - holder.at
        if age_s < LEASE_S:
            raise self._taken(f"one on {holder.host} was at work {max(0.0, age_s):.0f} s ago")

    def take(self) -> None:
        """Become the holder.

        Raises:
            StudyError: another driver holds it.
        """
        self.check_free()
        self._write()
        time.sleep(_SETTLE_S)
        self.renew()

    def renew(self) -> None:
        """Say that the driver is still at work.

        Raises:
            StudyError: another driver has taken the lease.
        """
        holder = self._holder()
        if holder is None or holder.token != self._mine.token:
            raise self._taken(f"one on {holder.host} took over" if holder else "the lease was removed")
        self._write()

    def release(self) -> None:
        """Let another driver go on at once."""
        holder = self._holder()
        if holder is not None and holder.token == self._mine.token:
            self._storage.delete(self._key)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _holder(self) -> Holder | None:
        content = self._storage.get(self._key)
        return from_json(Holder, content) if content else None

    def _write(self) -> None:
        self._mine = replace(self._mine, at=time.time())
        self._storage.put(self._key, to_json(self._mine).encode())

    def _taken(self, why: str) -> StudyError:
        return StudyError(
            f"Study {self._study!r} must have one driver at a time, but {why}.",
            hint=f"let it end, or if its machine is gone try again {LEASE_S:.0f} s after its last sign of life",
        )


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else str(uuid.getnode())
