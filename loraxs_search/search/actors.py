"""The long-lived actors of a search: the keeper of the study folder, the host directory, and the hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from loraxs_search.records import BaseModelRef, Confirmation, HostInfo, Precision, Task, TrialReport, TrialSpec
from loraxs_search.studies import StudyFolder

if TYPE_CHECKING:
    from loraxs_search.packing import TrialHost


def pinned(node_id: str) -> dict[str, Any]:
    """Return actor options that hold an actor to a node and take none of its resources."""
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


@ray.remote
class StudyKeeper:
    """Keeps trial snapshots in the study folder, on the driver's node: no shared file system is needed."""

    def __init__(self, name: str) -> None:
        self._folder = StudyFolder.open(name)

    def read_snapshot(self, trial_id: str) -> bytes | None:
        return self._folder.read_snapshot(trial_id)

    def write_snapshot(self, trial_id: str, snapshot: bytes) -> None:
        self._folder.write_snapshot(trial_id, snapshot)


@ray.remote
class HostActor:
    """A `TrialHost` in a process of its own. It is built at the first call, so that its errors keep their type."""

    def __init__(self, base: BaseModelRef, task: Task, precision: Precision, threads: int) -> None:
        self._arguments = (base, task, precision, threads)
        self._host: TrialHost | None = None

    def info(self) -> HostInfo:
        return self._get().info()

    def advance(self, spec: TrialSpec, until: int, snapshot: bytes | None) -> tuple[TrialReport, bytes]:
        return self._get().advance(spec, until, snapshot)

    def confirm(self, spec: TrialSpec, snapshot: bytes, score: bool) -> Confirmation:
        return self._get().confirm(spec, snapshot, score=score)

    def _get(self) -> TrialHost:
        if self._host is None:
            import torch  # here, so that the driver, the keeper and the directory stay without it

            from loraxs_search.packing import TrialHost

            base, task, precision, threads = self._arguments
            torch.set_num_threads(threads)
            self._host = TrialHost(base, task, precision=precision)
        return self._host


@ray.remote
class HostDirectory:
    """Creates hosts on request, one per device, and owns them: an actor dies with the process that created it."""

    def __init__(self, base: BaseModelRef, task: Task, precision: Precision, threads: int) -> None:
        self._arguments = (base, task, precision, threads)
        self._hosts: dict[tuple[str, str], Any] = {}

    def host_for(self, node_id: str, gpu: str | None, lost: Any = None) -> Any:
        """Return the host of a device, created if it is missing or is the one the caller found dead."""
        key = (node_id, gpu or "cpu")
        host = self._hosts.get(key)
        if host is None or (lost is not None and host == lost):
            host = self._hosts[key] = self._create(node_id, gpu)
        return host

    def _create(self, node_id: str, gpu: str | None) -> Any:
        threads = self._arguments[-1]
        env = {"OMP_NUM_THREADS": str(threads)}
        if gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = gpu
        options = {"runtime_env": {"env_vars": env}, **pinned(node_id)}
        return HostActor.options(**options).remote(*self._arguments)  # type: ignore[attr-defined]
