"""The long-lived actors of a search: the keeper of the study folder, the host directory, and the hosts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from loraxs_search.errors import BaseModelError, ClusterError, TaskDataError
from loraxs_search.records import (
    MAX_AUTO_PACK_SIZE,
    Answers,
    BaseModelRef,
    Basis,
    Confirmation,
    HostInfo,
    Identity,
    Precision,
    Task,
    TrialReport,
    TrialSpec,
    Yardstick,
    to_json,
)
from loraxs_search.search.cluster import node_facts
from loraxs_search.search.cluster.connection import living_nodes
from loraxs_search.search.cluster.node_checks import Expected, NodeFacts, failures, judge
from loraxs_search.search.cluster.placement import host_shape, processes_that_fit
from loraxs_search.search.hosts.identity import difference
from loraxs_search.search.hosts.leases import Leases
from loraxs_search.studies import StudyFolder

# Threads that wait for each other sleep: spinning ones make a step up to six times slower on a machine that is also
# used by others. Read by OpenMP when torch is imported.
_HOST_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}

MAX_CALLERS = 1000
_GATHER_S = 1.0  # between the first calls of trials whose processes start together


def here() -> str:
    """Return the id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def pinned(node_id: str) -> dict[str, Any]:
    """Return actor options that hold an actor to a node and take none of its resources."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


@ray.remote
class StudyKeeper:
    """Keeps trial snapshots in the study folder, on the driver's node: no shared file system is needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._folder: StudyFolder | None = None  # opened at first use: the keeper starts before there is one

    def read_snapshot(self, trial_id: str) -> bytes | None:
        return self._open().read_snapshot(trial_id)

    def write_snapshot(self, trial_id: str, snapshot: bytes) -> None:
        self._open().write_snapshot(trial_id, snapshot)

    def write_yardsticks(self, yardsticks: Sequence[Yardstick]) -> None:
        self._open().write_yardsticks(yardsticks)

    def _open(self) -> StudyFolder:
        self._folder = self._folder or StudyFolder.open(self._name)
        return self._folder


class Host(Protocol):
    """What trains trials behind a host actor; `packing.TrialHost` says what each call means."""

    def info(self, task: Task, *, anew: bool = False) -> HostInfo: ...

    def base_changed(self) -> bool: ...

    def close(self) -> None: ...

    def decompose(self, names: Sequence[str], rank: int, basis: Basis) -> None: ...

    def advance(self, spec: TrialSpec, until: int, snapshot: bytes | None, task: Task) -> tuple[TrialReport, bytes]: ...

    def confirm(self, spec: TrialSpec, snapshot: bytes, task: Task) -> Confirmation: ...

    def answer(self, spec: TrialSpec, snapshot: bytes, rows: range, task: Task) -> Answers: ...

    def yardsticks(self, task: Task) -> tuple[Yardstick, ...]: ...

    def factor_file(self, key: str) -> bytes: ...


def training_host(order: HostConfig, task: Task, threads: int) -> Host:
    """Return the host that trains: packed, or with trials taking turns."""
    import torch  # here, so that the driver, the keeper and the directory stay without it

    from loraxs_search.packing import PackedHost, TrialHost

    torch.set_num_threads(threads)
    if not order.packed:
        return TrialHost(order.base, task, precision=order.precision)
    slots = None if order.pack_size == "auto" else order.pack_size
    return PackedHost(
        order.base, task, slots=slots, precision=order.precision, largest=order.largest, gather_s=_GATHER_S
    )


def check_versions(node: str, expected: Mapping[str, str]) -> None:
    """Refuse to train in this process when its versions are not the driver's.

    Raises:
        ClusterError: with the node, the packages, and both versions of each.
    """
    facts = NodeFacts(node=node, versions=node_facts.versions())
    for finding in failures(judge(facts, Expected(expected))):
        raise ClusterError(
            f"Every node must have the driver's versions, but {node} has {finding.value}.", hint=finding.hint
        )


@dataclass(frozen=True)
class HostConfig:
    """What a host is to be: its base, and how it uses its device.

    Args:
        pack_size: Trials on a device; a node with twice the CPUs of the smallest one has twice as many.
        packed: Whether they share passes; otherwise they take turns, each alone.
        largest: (batch size, rank) of the largest trial to come.
        make: Makes the host in the actor's process, with a number of threads; a simulation names another, by a module
            the cluster can import.
        versions: The driver's, which a host's process must have too.
    """

    base: BaseModelRef
    precision: Precision
    pack_size: int | Literal["auto"]
    packed: bool
    largest: tuple[int, int]
    make: Callable[[HostConfig, Task, int], Host] = training_host
    versions: Mapping[str, str] = field(default_factory=dict)


@ray.remote(concurrency_groups={"yardsticks": 1})
class HostActor:
    """A trial host in a process of its own. It is built at the first call, so that its errors keep their type.

    A node may have joined after the driver looked at all there were: whatever keeps a host from being built there is
    told as `ClusterError` to the trials that were given to it.

    Args:
        threads: CPU threads for computation.
        address: Of its node, as the cluster knows it.
    """

    def __init__(self, order: HostConfig, threads: int, address: str) -> None:
        self._order, self._threads, self._address = order, threads, address
        self._host: Host | None = None
        self._loaded: dict[str, Identity] = {}  # by task: what was found when its rows were last read
        self._loading = threading.RLock()  # a packed host is called by several threads

    def info(self, task: Task) -> HostInfo:
        """Describe base and data as their files are now, whatever an earlier search has left here."""
        with self._loading:
            info = self._load(task)
        return replace(info, num_slots=min(info.num_slots, processes_that_fit()))

    def decompose(self, task: Task, names: Sequence[str], rank: int, basis: Basis) -> None:
        self._get(task).decompose(names, rank, basis)

    def advance(self, spec: TrialSpec, until: int, snapshot: bytes | None, task: Task) -> tuple[TrialReport, bytes]:
        return self._fit_for(spec, task).advance(spec, until, snapshot, task)

    def confirm(self, spec: TrialSpec, snapshot: bytes, task: Task) -> Confirmation:
        return self._fit_for(spec, task).confirm(spec, snapshot, task)

    def answer(self, spec: TrialSpec, snapshot: bytes, rows: range, task: Task) -> Answers:
        return self._fit_for(spec, task).answer(spec, snapshot, rows, task)

    # A thread of their own: no trial waits for them.
    @ray.method(concurrency_group="yardsticks")  # type: ignore[untyped-decorator]  # ray is untyped
    def yardsticks(self, task: Task) -> tuple[Yardstick, ...]:
        return self._get(task).yardsticks(task)

    def factor_file(self, key: str, task: Task) -> bytes:
        return self._get(task).factor_file(key)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _fit_for(self, spec: TrialSpec, task: Task) -> Host:
        """Return the host when it holds what the trial's study began with; what differs is read once more.

        Raises:
            ClusterError: this node has another base or other rows, or lacks them.
        """
        with self._loading:
            try:
                host, loaded = self._get(task), self._loaded[to_json(task)]
                if spec.identity not in (None, loaded):
                    self._load(task)
                    host, loaded = self._get(task), self._loaded[to_json(task)]
            except (BaseModelError, TaskDataError) as error:  # both were there on the host that the search began with
                raise self._unfit(str(error), error.hint) from error
        if spec.identity is not None and (differs := difference(spec.identity, loaded)):
            raise self._unfit(
                f"it has {differs}.",
                "put the files that the study began with at the same path on every node, or launch a new study",
            )
        return host

    def _unfit(self, why: str, hint: str | None) -> ClusterError:
        return ClusterError(f"Every node must be fit for the search, but {self._address} is not: {why}", hint=hint)

    def _get(self, task: Task) -> Host:
        """Return the host with this task's rows; they are read where that has not been done."""
        with self._loading:
            if self._host is None or to_json(task) not in self._loaded:
                self._load(task)
            assert self._host is not None
            return self._host

    def _load(self, task: Task) -> HostInfo:
        """Have base and rows as their files are now; what has not changed stays as it is."""
        if self._host is not None and (self._is_of_another_task(task) or self._host.base_changed()):
            self._host.close()
            self._host = None
            self._loaded.clear()
        if self._host is None:
            check_versions(self._address, self._order.versions)
            self._host = self._order.make(self._order, task, self._threads)
            info = self._host.info(task)
        else:
            info = self._host.info(task, anew=True)
        self._loaded[to_json(task)] = info.identity
        return info

    def _is_of_another_task(self, task: Task) -> bool:
        """Whether this is a host of lone trials, which serves one task, that an earlier search has left here."""
        return not self._order.packed and to_json(task) not in self._loaded


def callers(order: HostConfig, times: int) -> int:
    """Return how many may be inside a host at once: one more than wait for a round, so that a question is answered.

    Ray makes a thread for each beforehand. Trials beyond `MAX_CALLERS` wait before the actor.

    Args:
        times: What an `auto` host may take over one of the smallest node.
    """
    if not order.packed:
        return 1
    most = MAX_AUTO_PACK_SIZE * times if order.pack_size == "auto" else order.pack_size
    return 1 + min(most, MAX_CALLERS)


@ray.remote
class HostDirectory:
    """Creates hosts on request, one per device, and owns them: an actor dies with the process that created it.

    Args:
        kept: End when no lease is left, instead of with the search.
    """

    def __init__(self, order: HostConfig, kept: bool = False) -> None:
        self._order = order
        self._hosts: dict[tuple[str, str], Any] = {}
        self._leases = Leases()
        if kept:
            threading.Thread(target=self._end_when_over, name="leases", daemon=True).start()

    def renew(self, holder: str, keep_s: float) -> None:
        """Note that a search needs the hosts, and how long it wants them to stay after it."""
        self._leases.renew(holder, keep_s)

    def leave(self, holder: str) -> None:
        """Note that a search has ended."""
        self._leases.leave(holder)

    def host_for(self, node_id: str, gpu: str | None, lost: Any = None) -> Any:
        """Return the host of a device, created if it is missing or is the one the caller found dead."""
        key = (node_id, gpu or "cpu")
        host = self._hosts.get(key)
        if host is None or (lost is not None and host == lost):
            host = self._hosts[key] = self._create(node_id, gpu)
        return host

    def preload(self, node_id: str, gpu: str | None, task: Task) -> None:
        """Have the host of a device load; nobody waits for it."""
        self.host_for(node_id, gpu).info.remote(task)

    def hosts(self) -> list[Any]:
        """Return every host there is, in the order they were created."""
        return list(self._hosts.values())

    def _end_when_over(self) -> None:
        while not self._leases.are_over:
            time.sleep(1.0)
        os._exit(0)  # and with this process its hosts

    def _create(self, node_id: str, gpu: str | None) -> Any:
        nodes = living_nodes()
        node = next((n for n in nodes if n.node_id == node_id), None)
        threads, times = host_shape(node, gpu is not None, nodes, spare_cpus=os.cpu_count() or 1)
        order = self._order
        if order.pack_size != "auto":
            order = replace(order, pack_size=order.pack_size * times)
        env = {"OMP_NUM_THREADS": str(threads), **_HOST_ENVIRONMENT}
        if gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = gpu
        options = {"runtime_env": {"env_vars": env}, "max_concurrency": callers(order, times), **pinned(node_id)}
        return HostActor.options(**options).remote(order, threads, node.address if node else node_id)  # type: ignore[attr-defined]
