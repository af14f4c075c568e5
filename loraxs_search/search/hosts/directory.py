"""The actor that makes the hosts of a search, one for each device, and owns them."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from typing import cast

import ray

from loraxs_search.records.task import Task
from loraxs_search.search.cluster.connection import MAX_RESTARTS, NAMESPACE, here, living_nodes, pinned
from loraxs_search.search.cluster.placement import host_shape
from loraxs_search.search.hosts.client import DirectoryHandle, HostHandle, kill
from loraxs_search.search.hosts.host_actor import HostActor
from loraxs_search.search.hosts.host_config import HostConfig

# Threads that wait for each other sleep: spinning ones make a step up to six times slower on a machine that is also
# used by others. Read by OpenMP when torch is imported.
_HOST_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
# Baselines have their own thread: no trial waits for them. So have commands, which wait for no trial.
_RemoteHost = ray.remote(concurrency_groups={"baselines": 1, "commands": 1})(HostActor)  # type: ignore[call-overload]  # not in Ray's


class HostDirectory:
    """Creates hosts on request, one per device, and owns them: an actor dies with the process that created it."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self._hosts: dict[tuple[str, str], HostHandle] = {}

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


def start_directory(config: HostConfig) -> tuple[str, DirectoryHandle]:
    """Start a directory on this node; return the name under which it is found, and its handle."""
    name = f"directory-{uuid.uuid4().hex}"
    again = {"max_restarts": MAX_RESTARTS, "max_task_retries": -1}  # its hosts die with it, and are asked for anew
    actor = _RemoteDirectory.options(name=name, namespace=NAMESPACE, **again, **pinned(here()))
    return name, cast("DirectoryHandle", actor.remote(config))
