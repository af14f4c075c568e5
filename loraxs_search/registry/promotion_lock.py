"""One promoter at a time changes a task's champion: aliases have no compare-and-swap.

An embedded store has a file lock, a server a lease in a tag of the task's registered model.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import RegistryError
from loraxs_search.home import disk_faults, file_lock
from loraxs_search.registry import _versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "loraxs.lease"
TTL_S = 120.0  # longer than registering an adapter takes: a lease that stands still for so long is taken over
WAIT_S = 180.0  # for whoever changes a champion, before this one gives up
_SETTLE_S = (0.3, 0.6)  # longer than a promoter takes from reading that the lease is free to writing its own
_POLL_S = (0.1, 0.4)

Check = Callable[[], None]


@contextlib.contextmanager
def file_promotion_lock(database: Path) -> Iterator[Check]:
    """Hold an embedded store's lock: a file beside it, which the system frees when its holder dies.

    Raises:
        RegistryError: another promoter holds the lock for longer than `WAIT_S`.
    """
    from filelock import Timeout  # late, as in `file_lock`

    path = database.with_name(f"{database.name}.promote.lock")
    with disk_faults(path):
        try:
            held = file_lock(path).acquire(timeout=WAIT_S)
        except Timeout as error:
            raise RegistryError(
                f"{path} must be free to change a champion, but another process has held it for {WAIT_S:.0f} s.",
                hint=f"try again; a process that is suspended keeps it, and `fuser {path}` names who has it open",
            ) from error
        with held:
            yield lambda: None


@contextlib.contextmanager
def lease_promotion_lock(client: MlflowClient, task: str, *, wait_s: float = WAIT_S) -> Iterator[Check]:
    """Hold a task's lock on a server: a lease in a tag of its registered model, which must exist.

    Whoever finds it free, or sees it stand still for `TTL_S`, writes its name, waits a moment, and holds it if its name
    still stands there: of two that wrote, the last one. Clocks of two machines are never compared. Not proof against a
    promoter that sleeps between reading and writing for longer than that moment; so the one yielded here is to be
    called right before the champion moves: it raises unless the lease is still held, and renews it.

    Raises:
        RegistryError: another promoter holds the lease for longer than `wait_s`.
    """
    lease = _Lease(client, task)
    lease.acquire(wait_s)
    try:
        yield lease.check
    finally:
        lease.release()


class _Lease:
    def __init__(self, client: MlflowClient, task: str) -> None:
        self._client, self._task = client, task
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"

    def acquire(self, wait_s: float) -> None:
        began, seen = time.monotonic(), self._read()
        seen_at = time.monotonic()
        while True:
            if seen[0] is None or time.monotonic() - seen_at >= TTL_S:
                self._claim()
                time.sleep(random.uniform(*_SETTLE_S))
                if self._read()[0] == self._owner:
                    return
            time.sleep(random.uniform(*_POLL_S))
            if (lease := self._read()) != seen:
                seen, seen_at = lease, time.monotonic()
            if time.monotonic() - began > wait_s:
                holder = seen[0] or "another promoter"
                raise RegistryError(
                    f"The lease on {self._task} must be free to change its champion, but {holder} holds it.",
                    hint="try again; a promoter that died loses it within two minutes",
                )

    def _claim(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._write()
        except MlflowException:
            # Of two that insert the tag at once, the server's database refuses one: the other's lease stands there.
            if self._read()[0] is None:
                raise

    def check(self) -> None:
        owner, _ = self._read()
        if owner != self._owner:
            raise RegistryError(
                f"The lease on {self._task} must be held to change its champion, but {owner or 'nobody'} holds it.",
                hint="promoting took too long and another process took over: decide again",
            )
        self._write()

    def release(self) -> None:
        """Give the lease back; where the server is away by now, it runs out."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):
            if self._read()[0] == self._owner:
                self._client.delete_registered_model_tag(self._task, TAG)

    def _read(self) -> tuple[str | None, float]:
        model = _versions.registered_model(self._client, self._task)
        try:
            lease = json.loads(model.tags[TAG]) if model else {}
            return str(lease["owner"]), float(lease["expires"])
        except (KeyError, ValueError, TypeError):
            return None, 0.0

    def _write(self) -> None:
        lease = {"owner": self._owner, "expires": time.time() + TTL_S}  # the time changes with each; 0.3 goes by it
        self._client.set_registered_model_tag(self._task, TAG, json.dumps(lease))
