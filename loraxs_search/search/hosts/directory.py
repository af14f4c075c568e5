"""The actor that makes hosts, one for each device, and owns them."""

from __future__ import annotations

import os
import threading
import time
import uuid
from dataclasses import replace
from typing import cast

import ray

from loraxs_search.records import Task
from loraxs_search.search.cluster.connection import NAMESPACE, living_nodes
from loraxs_search.search.cluster.nodes import here, pinned
from loraxs_search.search.cluster.placement import host_shape
from loraxs_search.search.hosts.handles import DirectoryHandle, HostHandle
from loraxs_search.search.hosts.host_actor import HostActor
from loraxs_search.search.hosts.host_config import HostConfig
from loraxs_search.search.hosts.leases import Leases

# Threads that wait for each other sleep: spinning ones make a step up to six times slower on a machine that is also
# used by others. Read by OpenMP when torch is imported.
_HOST_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
# Yardsticks have a thread of their own: no trial waits for them. So have commands, which wait for no trial.
_RemoteHost = ray.remote(concurrency_groups={"yardsticks": 1, "commands": 1})(HostActor)  # type: ignore[call-overload]  # not in Ray's


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
        """Return the host of a device, created if it is missing or is the one that the caller has lost."""
        key = (node_id, gpu or "cpu")
        host = self._hosts.get(key)
        if host is None or (lost is not None and host == lost):
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
    outliving = {"lifetime": "detached", "get_if_exists": True} if warm_name else {}
    actor = _RemoteDirectory.options(name=name, namespace=NAMESPACE, **outliving, **pinned(here()))
    return name, cast("DirectoryHandle", actor.remote(config, warm_name is not None))
