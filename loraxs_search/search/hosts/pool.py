"""The hosts of a cluster that serve one base: one for each device, shared by all studies that are searched together."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import ray

from loraxs_search.records import HostInfo, SearchPlan, Task
from loraxs_search.search.cluster import runtime_env
from loraxs_search.search.cluster.connection import living_nodes, nodes_to_come
from loraxs_search.search.cluster.nodes import here
from loraxs_search.search.cluster.placement import (
    PackSize,
    SlotCounter,
    check_can_run,
    choose_pack_size,
    first_place,
    share_out,
)
from loraxs_search.search.hosts.client import HostClient
from loraxs_search.search.hosts.directory import start_directory
from loraxs_search.search.hosts.handles import HostHandle, kill
from loraxs_search.search.hosts.host_config import HostConfig
from loraxs_search.search.hosts.warm_hosts import HeldLease, directory_name

log = logging.getLogger(__name__)


class HostPool:
    """Owns the host directory; hosts end with it, at the end of the search or, if a plan asks for it, some time later.

    What one host does for all (facts, factors, scores) is done on a node that is alive at the time.

    Args:
        config: What every host is to be.
        plans: Of the studies that share the hosts; each gets its part of the slots.

    Raises:
        ClusterError: the cluster can run no trial.
    """

    def __init__(self, config: HostConfig, plans: Sequence[SearchPlan]) -> None:
        self.config = replace(config, versions=runtime_env.versions())
        self._plans = tuple(plans)
        nodes, to_come = living_nodes(), nodes_to_come()
        check_can_run(nodes, to_come, next((p.concurrent for p in plans if p.concurrent), None))
        self._device = plans[0].device
        if self._device == "auto" and any(node.num_gpus for node in (*nodes, *to_come)):
            self._device = "gpu"  # also after the last GPU has left, as spot nodes do: another will come
        self._place: tuple[str, str | None] | None = None
        keep_s = max(plan.keep_hosts_s or 0.0 for plan in plans)
        warm_name = directory_name(self.config, runtime_env.installers()) if keep_s else None
        self.directory_name, self._directory = start_directory(self.config, warm_name)
        self._lease = HeldLease(self._directory, keep_s) if keep_s else None

    def preload(self, task: Task) -> None:
        """Have a first host load the base and a task's rows; what goes wrong is raised by its `info`."""
        self._directory.preload.remote(*self._living_place(), task)

    def host(self) -> HostClient:
        """Return the host for work that one host does for all."""
        return HostClient.of(self._find)

    def hosts(self) -> list[HostClient]:
        """Return all hosts that exist by now; at least one."""
        actors = ray.get(self._directory.hosts.remote())
        return [HostClient(self._find, actor) for actor in actors] or [self.host()]

    def pack_size(self, info: HostInfo) -> PackSize:
        """Choose how many trials share a device; the same for all studies."""
        asked = self.config.pack_size
        chosen = choose_pack_size(
            asked,
            fits=info.num_slots,
            fills=info.full_slots,
            num_trials=sum(plan.trials for plan in self._plans),
            num_devices=share_out(living_nodes(), 1, self._device).num_slots,
        )
        if asked != "auto" and chosen.size < asked:
            message = "`search.pack_size` is %d, but %s: it is %d for this search."
            log.warning(message, asked, chosen.reason, chosen.size)
        return chosen

    def slot_counter(self, size: int, plan: SearchPlan) -> SlotCounter:
        """Return the counter of slots for one of the studies, as nodes come and go.

        Args:
            size: Trials that share a device. Each study has a slot of its own at least: trials that cannot share passes
                take turns on the host, whatever study they are of.
        """
        devices = share_out(living_nodes(), 1, self._device).num_slots
        least = math.ceil(len(self._plans) / max(1, devices))
        return SlotCounter(
            lambda: share_out(living_nodes(), max(size, least), self._device),
            concurrent=plan.concurrent,
            num_studies=len(self._plans),
        )

    def close(self) -> None:
        """End directory and hosts now, unless they are to stay warm."""
        if self._lease is not None:
            self._lease.leave()
        else:
            kill(self._directory)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _find(self, lost: HostHandle | None) -> HostHandle:
        return ray.get(self._directory.host_for.remote(*self._living_place(), lost))

    def _living_place(self) -> tuple[str, str | None]:
        nodes = living_nodes()
        place = first_place(nodes, self._device, here())
        gone = self._place is None or self._place[0] not in {node.node_id for node in nodes}
        if gone or (self._place and self._place[1] is None and place[1] is not None):  # a GPU has come
            self._place = place
        return self._place or place
