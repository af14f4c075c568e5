"""The process of a host: it has the base and the rows that each study began with, or refuses the study's trials.

It says how busy its node and device are, under MLflow's own names of system metrics.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

import psutil
import ray

from loraxs_search import assets
from loraxs_search.errors import BaseModelError, ClusterError, HomeError, TaskDataError
from loraxs_search.home import in_use
from loraxs_search.packing._base import Host
from loraxs_search.records.base import Identity
from loraxs_search.records.codec import to_json
from loraxs_search.records.host import HostInfo
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search.cluster.node_checks import Expected, NodeFacts, evaluate, failures
from loraxs_search.search.hosts.client import find_snapshot_store
from loraxs_search.search.hosts.host_config import HostConfig
from loraxs_search.versions import with_python

_MEGABYTE = 1e6  # as MLflow counts them
UNBORN_S = 10.0  # a thread begins within milliseconds


class NodeUsage:
    """Reads how busy the node is, and this process's GPU if it has one and computes on it.

    psutil's own percentage is of each thread that asks, and of the first question it says 0.
    """

    def __init__(self) -> None:
        self._before = _processor_seconds()

    def read(self) -> dict[str, float]:
        """Return readings; that of processors is since the reading before, by whatever thread."""
        memory, (busy, total) = psutil.virtual_memory(), _processor_seconds()
        before, self._before = self._before, (busy, total)
        spent = total - before[1]
        node = {
            "cpu_utilization_percentage": 100.0 * (busy - before[0]) / spent if spent > 0 else 0.0,
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
        }
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return node | {f"gpu_{gpu}_{name}": value for name, value in _gpu_usage().items()}


def _processor_seconds() -> tuple[float, float]:
    """Return what all processors have spent since the machine started: at work, and in all."""
    times = psutil.cpu_times()._asdict()
    total = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)  # in `user` and `nice` already
    return total - times["idle"] - times.get("iowait", 0.0), total


def _gpu_usage() -> Mapping[str, float]:
    """Return readings of the only GPU that this process sees; how busy it is only where NVIDIA's library is there."""
    if "torch" not in sys.modules:
        return {}
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    free, total = torch.cuda.mem_get_info()
    readings = {
        "memory_usage_megabytes": (total - free) / _MEGABYTE,
        "memory_usage_percentage": 100.0 * (total - free) / total,
    }
    with contextlib.suppress(ImportError, RuntimeError):  # no nvidia-ml-py; a driver that says nothing
        readings["utilization_percentage"] = float(torch.cuda.utilization())
    return readings


@functools.cache
def _end_with_unborn_threads() -> None:
    """Have this process end when one of its threads has not begun long after it was started.

    `Thread.start` waits until its thread has begun. Where memory ends in between, Python 3.11 waits for ever, and
    whoever waits for an answer does too. A host that is lost is replaced.
    """
    threading.Thread(target=_watch_threads, name="unborn-threads", daemon=True).start()


def _watch_threads() -> None:
    before = set[threading.Thread]()
    while True:
        time.sleep(UNBORN_S)
        with contextlib.suppress(MemoryError):
            unborn = {thread for thread in threading.enumerate() if not thread.is_alive()}
            if unborn & before:
                os._exit(1)
            before = unborn


class HostActor:
    """A host in its own process. It is built at the first call, so that its errors keep their type.

    Ray calls it from `HostConfig.max_callers` threads, and from one more for each of the groups `baselines` and
    `commands`. A node may have joined after the driver looked at all there were: whatever keeps a host from being built
    there is a `ClusterError` to the trials that were given to it.

    Args:
        threads: CPU threads for computation.
        address: Of its node, as the cluster knows it.
    """

    def __init__(self, config: HostConfig, threads: int, address: str) -> None:
        _end_with_unborn_threads()
        self._config, self._threads, self._address = config, threads, address
        self._host: Host | None = None
        self._loaded: dict[str, Identity] = {}  # by task: base and rows when the rows were last read
        self._loading = threading.RLock()
        self._home_in_use = contextlib.ExitStack()  # until the process ends
        self._usage = NodeUsage()

    def info(self, task: Task) -> HostInfo:
        """Describe base and data as their files are now, whatever an earlier search has loaded here."""
        with self._loading:
            return self._load(task)

    def call(self, method: str, task: Task, args: tuple[Any, ...], identity: Identity | None = None) -> Any:
        """Call a method of the host, which has the task's rows; `HostClient` has the methods with their types.

        A call on behalf of a trial names it first. It is answered by a host that holds what the trial's study began
        with, and so is any other call with an `identity`.
        """
        try:
            return self._call(method, task, args, identity)
        except HomeError as error:
            raise HomeError(f"On node {self._address}: {error.message}", hint=error.hint) from error

    def cancel(self, names: Collection[str]) -> None:
        """End trials before their next step; nothing is to be ended where the host is not built yet."""
        if (host := self._host) is not None:
            host.cancel(names)

    def steps(self) -> dict[str, int]:
        """Return the steps of the trials that are being advanced, by `TrialSpec.name`."""
        return {} if (host := self._host) is None else dict(host.steps())

    def usage(self) -> tuple[str, dict[str, float]]:
        """Return the address of the node, and how busy it and the device are."""
        return self._address, self._usage.read()

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _call(self, method: str, task: Task, args: tuple[Any, ...], identity: Identity | None) -> Any:
        spec = args[0] if args and isinstance(args[0], TrialSpec) else None
        identity = spec.identity if spec else identity
        host = self._host_with(task) if spec is None and identity is None else self._host_for(identity, task)
        if spec is not None:
            _bring_assets(spec)
        return getattr(host, method)(*args)

    def _host_for(self, identity: Identity | None, task: Task) -> Host:
        """Return the host if it has the base and rows that a study began with; what differs is read again.

        Raises:
            ClusterError: this node has another base or other rows, or none.
        """
        with self._loading:
            try:
                host, loaded = self._host_with(task), self._loaded[to_json(task)]
                if identity not in (None, loaded):
                    self._load(task)
                    host, loaded = self._host_with(task), self._loaded[to_json(task)]
            except (BaseModelError, TaskDataError) as error:  # both were there on the host that the search began with
                raise self._unfit(str(error), error.hint) from error
        if identity is not None and (differs := identity.difference(loaded)):
            raise self._unfit(
                f"it has {differs}.",
                "put the files that the study began with at the same path on every node, or launch a new study",
            )
        return host

    def _unfit(self, why: str, hint: str | None) -> ClusterError:
        return ClusterError(f"Every node must be fit for the search, but {self._address} is not: {why}", hint=hint)

    def _host_with(self, task: Task) -> Host:
        """Return the host with this task's rows; reads them the first time."""
        with self._loading:
            if self._host is None or to_json(task) not in self._loaded:
                self._load(task)
            assert self._host is not None
            return self._host

    def _load(self, task: Task) -> HostInfo:
        """Bring base and rows up to date with their files; unchanged ones stay loaded."""
        if self._host is not None and (not self._host.can_serve(task) or self._host.base_changed()):
            self._host.close()
            self._host = None
            self._loaded.clear()
        if self._host is None:
            check_versions(self._address, self._config.versions)
            self._home_in_use.enter_context(in_use())
            self._host = self._config.make(self._config, task, self._threads)
            info = self._host.info(task)
        else:
            info = self._host.info(task, anew=True)
        self._loaded[to_json(task)] = info.identity
        return info


def _bring_assets(spec: TrialSpec) -> None:
    """Put on this node what a trial starts from, where it is not there yet.

    Raises:
        HomeError: the folder cannot be written.
        StudyError: the study has lost it.
    """
    hyper = spec.hyperparameters
    for digest in (hyper.start_from, hyper.linear_probe):
        if digest is not None and spec.snapshot_store and assets.lacks(digest):
            assets.keep(ray.get(find_snapshot_store(spec.snapshot_store).read_asset.remote(digest)))


def check_versions(node: str, expected: Mapping[str, str]) -> None:
    """Refuse to train in this process when its versions are not the driver's.

    Raises:
        ClusterError: with the node, the packages, and both versions of each.
    """
    facts = NodeFacts(node=node, versions=with_python())
    for failure in failures(evaluate(facts, Expected(expected))):
        raise ClusterError(
            f"Every node must have the driver's versions, but {node} has {failure.value}.", hint=failure.hint
        )
