"""The actor that makes hosts, one for each device, and owns them; and who needs them for how long.

Searches hold leases on it. Warm hosts outlive the last lease for as long as it asked, and the next search with the same
base and settings takes them up.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError

from loraxs_search.records import Task
from loraxs_search.search.cluster.connection import MAX_RESTARTS, NAMESPACE, here, living_nodes, pinned
from loraxs_search.search.cluster.placement import host_shape
from loraxs_search.search.hosts.client import DirectoryHandle, HostHandle, kill
from loraxs_search.search.hosts.host_actor import HostActor
from loraxs_search.search.hosts.host_config import HostConfig

RENEW_S = 10.0
EXPIRE_S = 60.0


class Leases:
    """Leases of searches on the hosts of one directory; safe for several threads.

    A lease that is not renewed for `EXPIRE_S` has run out: its search was killed. The hosts are over once no lease is
    left and the longest time that those who left asked for is over.

    Args:
        now: A clock in seconds that never goes back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._renewed: dict[str, tuple[float, float]] = {}  # holder -> (when, how long hosts stay after it)
        self._until = now() + EXPIRE_S  # time for a first one
        self._is_new = True
        self._lock = threading.Lock()

    def renew(self, holder: str, keep_s: float) -> None:
        """Record that a search is running, and that hosts stay for `keep_s` after it."""
        with self._lock:
            if self._is_new:
                self._until, self._is_new = self._now(), False
            self._renewed[holder] = (self._now(), keep_s)

    def leave(self, holder: str) -> None:
        """Record that a search has ended."""
        with self._lock:
            _, keep_s = self._renewed.pop(holder, (0.0, 0.0))
            self._until = max(self._until, self._now() + keep_s)

    @property
    def are_over(self) -> bool:
        """Whether nobody needs the hosts any more."""
        with self._lock:
            now = self._now()
            for holder, (when, keep_s) in list(self._renewed.items()):
                if now > when + EXPIRE_S:
                    del self._renewed[holder]
                    self._until = max(self._until, when + EXPIRE_S + keep_s)
            return not self._renewed and now > self._until


# Threads that wait for each other sleep: spinning ones make a step up to six times slower on a machine that is also
# used by others. Read by OpenMP when torch is imported.
_HOST_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
# Baselines have their own thread: no trial waits for them. So have commands, which wait for no trial.
_RemoteHost = ray.remote(concurrency_groups={"baselines": 1, "commands": 1})(HostActor)  # type: ignore[call-overload]  # not in Ray's


class HostDirectory:
    """Creates hosts on request, one per device, and owns them: an actor dies with the process that created it.

    Args:
        warm: End when no lease is left, instead of with the search.
    """

    def __init__(self, config: HostConfig, warm: bool = False) -> None:
        self._config = config
        self._hosts: dict[tuple[str, str], HostHandle] = {}
        self._leases = Leases()
        if warm:
            threading.Thread(target=self._end_when_over, name="leases", daemon=True).start()

    def renew(self, holder: str, keep_s: float) -> None:
        """Note that a search needs the hosts, and how long it wants them to stay after it."""
        self._leases.renew(holder, keep_s)

    def leave(self, holder: str) -> None:
        """Note that a search has ended."""
        self._leases.leave(holder)

    def host_for(self, node_id: str, gpu: str | None, lost: HostHandle | None = None) -> HostHandle:
        """Return the host of a device, created if it is missing or is the one that the caller has lost.

        A lost one may live, behind a network that was cut: it is ended, since a device holds the base once.
        """
        key = (node_id, gpu or "cpu")
        host = self._hosts.get(key)
        if host is None or (lost is not None and host == lost):
            if host is not None:
                kill(host)
            host = self._hosts[key] = self._create(node_id, gpu)
        return host

    def preload(self, node_id: str, gpu: str | None, task: Task) -> None:
        """Have the host of a device load; nobody waits for it."""
        self.host_for(node_id, gpu).info.remote(task)

    def hosts(self) -> list[HostHandle]:
        """Return every host there is, in the order they were created."""
        return list(self._hosts.values())

    def _end_when_over(self) -> None:
        while not self._leases.are_over:
            time.sleep(1.0)
        os._exit(0)  # and with this process its hosts

    def _create(self, node_id: str, gpu: str | None) -> HostHandle:
        nodes = living_nodes()
        node = next((n for n in nodes if n.node_id == node_id), None)
        threads, times = host_shape(node, gpu is not None, nodes, spare_cpus=os.cpu_count() or 1)
        config = self._config
        if config.pack_size != "auto":
            config = replace(config, pack_size=config.pack_size * times)
        env = {"OMP_NUM_THREADS": str(threads), **_HOST_ENVIRONMENT}
        if gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = gpu
        callers = config.max_callers(times)
        actor = _RemoteHost.options(runtime_env={"env_vars": env}, max_concurrency=callers, **pinned(node_id))
        return cast("HostHandle", actor.remote(config, threads, node.address if node else node_id))


_RemoteDirectory = ray.remote(HostDirectory)


def start_directory(config: HostConfig, warm_name: str | None) -> tuple[str, DirectoryHandle]:
    """Start a directory on this node; return the name under which it is found, and its handle.

    Args:
        warm_name: Of hosts that outlive the search; the directory that has it already is taken. None ends them with it.
    """
    name = warm_name or f"directory-{uuid.uuid4().hex}"
    if warm_name:  # it ends itself, and its hosts by that
        life: dict[str, Any] = {"lifetime": "detached", "get_if_exists": True}
    else:  # its hosts die with it, and are asked for anew
        life = {"max_restarts": MAX_RESTARTS, "max_task_retries": -1}
    actor = _RemoteDirectory.options(name=name, namespace=NAMESPACE, **life, **pinned(here()))
    return name, cast("DirectoryHandle", actor.remote(config, warm_name is not None))


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
