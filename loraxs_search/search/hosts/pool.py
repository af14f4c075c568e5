"""The hosts of a cluster that serve one base: one a device, shared by every study that is searched together."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, RayActorError

from loraxs_search.records import MAX_AUTO_PACK_SIZE, Basis, HostInfo, SearchPlan, Task, Yardstick
from loraxs_search.search.cluster import runtime_env
from loraxs_search.search.cluster.connection import NAMESPACE, living_nodes, nodes_to_come
from loraxs_search.search.cluster.placement import (
    PackSize,
    SlotCounter,
    check_can_run,
    choose_pack_size,
    first_place,
    share_out,
)
from loraxs_search.search.hosts.actors import HostConfig, HostDirectory, here, pinned
from loraxs_search.search.hosts.warm_hosts import HeldLease, directory_name
from loraxs_search.search_space import Space

log = logging.getLogger(__name__)

_HOST_TRIES = 4
HOST_LOST = (RayActorError, ActorUnschedulableError)  # the host died, or its node did


class HostPool:
    """Owns the host directory; hosts end with it, at the end of the search or as long after it as a plan asks for.

    What one host does for all (facts, factors, scores) is done on a node that is alive at the time.

    Args:
        order: What every host is to be.
        plans: Of the studies that share the hosts; each gets its part of the slots.

    Raises:
        ClusterError: the cluster can run no trial.
    """

    def __init__(self, order: HostConfig, plans: Sequence[SearchPlan]) -> None:
        self._order = replace(order, versions=runtime_env.versions())
        self._plans = tuple(plans)
        nodes, to_come = living_nodes(), nodes_to_come()
        check_can_run(nodes, to_come, next((p.concurrent for p in plans if p.concurrent), None))
        self._device = plans[0].device
        if self._device == "auto" and any(node.num_gpus for node in (*nodes, *to_come)):
            self._device = "gpu"  # and it stays so when the last GPU goes, as spot nodes do: another will come
        self._place: tuple[str, str | None] | None = None
        self._open_directory()

    @property
    def trials_at_once(self) -> int:
        """Trials that a host advances at once, at most."""
        order = self._order
        return (MAX_AUTO_PACK_SIZE if order.pack_size == "auto" else order.pack_size) if order.packed else 1

    def preload(self, task: Task) -> None:
        """Have a first host load the base and a task's rows; what goes wrong is told by `info`."""
        self._directory.preload.remote(*self._living_place(), task)

    def info(self, task: Task) -> HostInfo:
        """Have one host load the base and a task, and describe them.

        Raises:
            BaseModelError, TaskDataError: the base or the data is not in order on that host.
        """
        return self._ask(lambda host: host.info.remote(task))  # type: ignore[no-any-return]

    def decompose(self, task: Task, names: Sequence[str], rank: int, basis: Basis) -> Any:
        """Have one host get the factors of these layers; return what can be waited for.

        A host that dies meanwhile is no loss: whatever needs a factor gets it.
        """
        return self._host().decompose.remote(task, names, rank, basis)

    def begin_yardsticks(self, task: Task) -> Any:
        """Have one host measure a task's yardsticks beside its trials; return Ray's reference to them."""
        return self._host().yardsticks.remote(task)

    def yardsticks(self, task: Task) -> tuple[Yardstick, ...]:
        """Have one host measure a task's yardsticks, and wait for them."""
        return self._ask(lambda host: host.yardsticks.remote(task))  # type: ignore[no-any-return]

    def pack_size(self, info: HostInfo) -> PackSize:
        """Choose how many trials share a device; the same for all studies."""
        asked = self._order.pack_size
        chosen = choose_pack_size(
            asked,
            fits=info.num_slots,
            fills=info.full_slots,
            num_trials=sum(plan.trials for plan in self._plans),
            num_devices=share_out(living_nodes(), 1, self._device).num_slots,
        )
        if asked != "auto" and chosen.size < asked:
            said = "`search.pack_size` is %d, but %s: it is %d for this search."
            log.warning(said, asked, chosen.reason, chosen.size)
        return chosen

    def census(self, size: int, plan: SearchPlan) -> SlotCounter:
        """Return what counts the slots for one of the studies as nodes come and go.

        Args:
            size: Trials that share a device.
        """
        return SlotCounter(
            lambda: share_out(living_nodes(), size, self._device),
            concurrent=plan.concurrent,
            num_studies=len(self._plans),
        )

    def hosts(self) -> list[Any]:
        """Return every host there is by now; one at least."""
        return ray.get(self._directory.hosts.remote()) or [self._host()]

    def replacement(self, lost: Any) -> Any:
        """Return a host to go on with for one that died."""
        return self._host(lost)

    def factor_file(self, key: str, task: Task) -> bytes:
        """Fetch a factor file from one host."""
        return self._ask(lambda host: host.factor_file.remote(key, task))  # type: ignore[no-any-return]

    def close(self) -> None:
        """End directory and hosts now, unless they are to be kept."""
        if self._lease is not None:
            self._lease.leave()
        else:
            ray.kill(self._directory)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _open_directory(self) -> None:
        keep_s = max(plan.keep_hosts_s or 0.0 for plan in self._plans)
        lasting = directory_name(self._order, runtime_env.installers())
        self.directory_name = lasting if keep_s else f"directory-{uuid.uuid4().hex}"
        options = {"name": self.directory_name, "namespace": NAMESPACE, **pinned(here())}
        if keep_s:
            options |= {"lifetime": "detached", "get_if_exists": True}
        self._directory = HostDirectory.options(**options).remote(self._order, kept=bool(keep_s))  # type: ignore[attr-defined]
        self._lease = HeldLease(self._directory, keep_s) if keep_s else None

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """Ask one host; one that dies, or whose node does, is replaced a few times, on another node if need be."""
        lost: Any = None
        for tries_left in reversed(range(_HOST_TRIES)):
            host = self._host(lost)
            try:
                return ray.get(question(host))
            except HOST_LOST:
                if not tries_left:
                    raise
                lost = host
        raise AssertionError("unreachable")

    def _host(self, lost: Any = None) -> Any:
        return ray.get(self._directory.host_for.remote(*self._living_place(), lost))

    def _living_place(self) -> tuple[str, str | None]:
        nodes = living_nodes()
        place = first_place(nodes, self._device, here())
        gone = self._place is None or self._place[0] not in {node.node_id for node in nodes}
        if gone or (self._place and self._place[1] is None and place[1] is not None):  # a GPU has come
            self._place = place
        return self._place or place


def host_config(spaces: Sequence[Space]) -> HostConfig:
    """Return the hosts that serve all of these spaces, which agree in base and precision."""
    sizes = [space.search.pack_size for space in spaces]
    fixed = [size for size in sizes if size != "auto"]
    largest = [space.largest() for space in spaces]
    return HostConfig(
        base=spaces[0].base_model,
        precision=spaces[0].search.precision,
        # Each study has a slot of its own at least.
        pack_size=max(*fixed, len(spaces)) if len(fixed) == len(sizes) else "auto",
        packed=len(spaces) > 1 or sizes[0] != 1,
        largest=(max(size for size, _ in largest), max(rank for _, rank in largest)),
    )
