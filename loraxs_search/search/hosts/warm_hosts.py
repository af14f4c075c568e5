"""Hosts that outlive a search: the next one with the same base and settings finds them warm."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from loraxs_search.search.hosts.handles import DirectoryHandle
from loraxs_search.search.hosts.host_config import HostConfig
from loraxs_search.search.hosts.leases import RENEW_S

_PACKAGE = Path(__file__).parents[2]


def directory_name(config: HostConfig, installed: Mapping[str, Any]) -> str:
    """Return the name of the directory whose hosts may serve: of the same config, made by the same code.

    Args:
        installed: What nodes have to install for the search.
    """
    settings = asdict(config) | {"make": config.make.__qualname__, "installed": installed}
    digest = hashlib.sha256(repr(settings).encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + path.read_bytes())
    return f"directory-{digest.hexdigest()[:32]}"


class HeldLease:
    """This search's lease on a directory of hosts, renewed until it is left.

    Args:
        directory: The directory's actor.
        keep_s: How long its hosts are to stay after this search.
    """

    def __init__(self, directory: DirectoryHandle, keep_s: float) -> None:
        self._directory, self._keep_s, self._holder = directory, keep_s, uuid.uuid4().hex
        self._ending = threading.Event()
        self._directory.renew.remote(self._holder, keep_s)
        self._thread = threading.Thread(target=self._renew, name="host-lease", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """End the lease; from now on the hosts stay for `keep_s`."""
        self._ending.set()
        self._thread.join()
        self._directory.leave.remote(self._holder)

    def _renew(self) -> None:
        while not self._ending.wait(RENEW_S):
            try:
                self._directory.renew.remote(self._holder, self._keep_s)
            except RayError:  # the cluster is ending: the next call to a host raises the error
                return
