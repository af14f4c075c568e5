"""The hosts of a cluster that serve one base: one a device, shared by every study that is searched together."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from loraxs_search.records import MAX_AUTO_PACK_SIZE, Basis, Confirmation, HostInfo, SearchPlan, Task, TrialSpec
from loraxs_search.search.actors import HostDirectory, HostOrder, here, pinned
from loraxs_search.search.cluster import NAMESPACE, Slots, gpu_node_ids, slots
from loraxs_search.search.warm_up import warm_up
from loraxs_search.search_space import Space

_LIKELY_PACK_SIZE = 8  # what `auto` comes to on a CPU for rows of common length


class HostPool:
    """Owns the host directory and its first host; both end with it.

    Args:
        order: What every host is to be.
        num_studies: Studies that share the hosts; each gets its part of the slots.
    """

    def __init__(self, order: HostOrder, num_studies: int = 1) -> None:
        self.directory_name = f"directory-{uuid.uuid4().hex}"
        self._num_studies, self._pack_size = num_studies, order.pack_size
        # Trials that a host advances at once.
        self.trials_at_once = (
            (MAX_AUTO_PACK_SIZE if order.pack_size == "auto" else order.pack_size) if order.packed else 1
        )
        options = {"name": self.directory_name, "namespace": NAMESPACE, **pinned(here())}
        self._directory = HostDirectory.options(**options).remote(order)  # type: ignore[attr-defined]
        gpu_nodes = gpu_node_ids()
        self._place = (gpu_nodes[0], "0") if gpu_nodes else (here(), None)

    def info(self, task: Task, plan: SearchPlan) -> HostInfo:
        """Have the first host load the base and a task, and describe them.

        Processes for the trials of `plan` start meanwhile, where there is one node: on several, Ray would make them
        where they may not be needed.

        Raises:
            BaseModelError, TaskDataError: the base or the data is not in order on that host.
        """
        found = self._first_host().info.remote(task)
        if len(ray.nodes()) == 1:
            warm_up(min(plan.trials, plan.concurrent or self._likely_slots(plan)), found)
        return ray.get(found)  # type: ignore[no-any-return]

    def decompose(self, task: Task, names: Sequence[str], rank: int, basis: Basis) -> None:
        """Have the first host get the factors of these layers."""
        ray.get(self._first_host().decompose.remote(task, names, rank, basis))

    def slots(self, info: HostInfo, plan: SearchPlan) -> Slots:
        """Say what a trial of one of the studies asks for, and how many it may run at once."""
        # With `auto`, few enough that the sampler, which learns from trials that have ended, has three rounds of them.
        size = max(1, min(info.num_slots, plan.trials // 3)) if self._pack_size == "auto" else self._pack_size
        found = slots(size)
        return Slots(found.resources, max(1, found.num_slots // self._num_studies), found.threads)

    def confirm(self, spec: TrialSpec, snapshot: bytes, task: Task, *, score: bool) -> Confirmation:
        """Have the first host write out a trained adapter and score it on the test split.

        A host that died is replaced once.
        """
        host = self._first_host()
        try:
            return ray.get(host.confirm.remote(spec, snapshot, task, score))  # type: ignore[no-any-return]
        except RayActorError:
            host = self._first_host(lost=host)
            return ray.get(host.confirm.remote(spec, snapshot, task, score))  # type: ignore[no-any-return]

    def hosts(self) -> list[Any]:
        """Return every host there is by now; the first host at least."""
        return ray.get(self._directory.hosts.remote()) or [self._first_host()]

    def replacement(self, lost: Any) -> Any:
        """Return a host to go on with for one that died."""
        first = self._first_host()
        return self._first_host(lost=lost) if first == lost else first

    def factor_file(self, key: str, task: Task) -> bytes:
        """Fetch a factor file from the first host."""
        return ray.get(self._first_host().factor_file.remote(key, task))  # type: ignore[no-any-return]

    def close(self) -> None:
        """End directory and hosts now."""
        ray.kill(self._directory)

    def _likely_slots(self, plan: SearchPlan) -> int:
        size = min(_LIKELY_PACK_SIZE, plan.trials // 3) if self._pack_size == "auto" else self._pack_size
        return slots(max(1, size)).num_slots // self._num_studies

    def _first_host(self, lost: Any = None) -> Any:
        return ray.get(self._directory.host_for.remote(*self._place, lost))


def host_order(spaces: Sequence[Space]) -> HostOrder:
    """Return the hosts that serve all of these spaces, which agree in base and precision."""
    sizes = [space.search.pack_size for space in spaces]
    fixed = [size for size in sizes if size != "auto"]
    largest = [space.largest() for space in spaces]
    return HostOrder(
        base=spaces[0].base_model,
        precision=spaces[0].search.precision,
        threads=slots(1).threads,
        # Each study has a slot of its own at least.
        pack_size=max(*fixed, len(spaces)) if len(fixed) == len(sizes) else "auto",
        packed=len(spaces) > 1 or sizes[0] != 1,
        largest=(max(size for size, _ in largest), max(rank for _, rank in largest)),
    )
