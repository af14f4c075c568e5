"""The process of a host and its configuration: it has the base and the rows that each study began with, or refuses."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import ray
from ray.actor import ActorProxy

from loraxs_search import assets
from loraxs_search.errors import BaseModelError, ClusterError, HomeError, TaskDataError
from loraxs_search.home import in_use
from loraxs_search.records.adapter import HostInfo, LargestTrial
from loraxs_search.records.codec import MAX_AUTO_PACK_SIZE, Precision, to_json
from loraxs_search.records.search import Baseline
from loraxs_search.records.task import BaseModelRef, Identity, Task
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search.cluster.connection import NAMESPACE
from loraxs_search.search.cluster.node_checks import compare_versions
from loraxs_search.search_space.space import Space
from loraxs_search.versions import with_python

if TYPE_CHECKING:
    from loraxs_search.packing.host import TrialHost

_GATHER_S = 1.0  # between the first calls of trials that start together


def _training_host(config: HostConfig, task: Task, threads: int) -> TrialHost:
    """Return the host that trains."""
    import torch  # here, so that the driver, the snapshot store and the directory stay without it

    from loraxs_search.packing.host import TrialHost

    torch.set_num_threads(threads)
    return TrialHost(
        config.base,
        task,
        slots=None if config.pack_size == "auto" else config.pack_size,
        precision=config.precision,
        largest=config.largest,
        gather_s=_GATHER_S,
    )


@dataclass(frozen=True)
class HostConfig:
    """The configuration of a host: its base, and how it uses its device.

    Args:
        pack_size: Trials on a device; a node with twice the CPUs of the smallest one has twice as many.
        largest: The largest trial to come that shares passes.
        make: Makes the host in the actor's process, with a number of threads; a simulation names another, by a module
            the cluster can import.
        versions: The driver's, which a host's process must have too.
    """

    base: BaseModelRef
    precision: Precision
    pack_size: int | Literal["auto"]
    largest: LargestTrial
    make: Callable[[HostConfig, Task, int], TrialHost] = _training_host
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def max_trials(self) -> int:
        """Trials that a host of the smallest node advances at once, at most."""
        return MAX_AUTO_PACK_SIZE if self.pack_size == "auto" else self.pack_size


def host_config(spaces: Sequence[Space]) -> HostConfig:
    """Return the hosts that serve all of these spaces, which agree in base, body, precision and size of packs."""
    search, largest = spaces[0].search, [space.largest() for space in spaces]
    return HostConfig(
        base=spaces[0].base_model,
        precision=search.precision,
        # Each study has its own slot at least.
        pack_size="auto" if search.pack_size == "auto" else max(search.pack_size, len(spaces)),
        largest=LargestTrial(
            max(each.batch_size for each in largest), tuple(adapter for each in largest for adapter in each.adapters)
        ),
    )


UNBORN_S = 10.0  # a thread begins within milliseconds


def _end_with_unborn_threads() -> None:
    """End this process when one of its threads has not begun long after it was started.

    `Thread.start` waits until its thread has begun. Where memory ends in between, Python 3.11 waits for ever, and
    whoever waits for an answer does too. A host that is lost is replaced.
    """
    before = set[threading.Thread]()
    while True:
        time.sleep(UNBORN_S)
        with contextlib.suppress(MemoryError):
            unborn = {thread for thread in threading.enumerate() if not thread.is_alive()}
            if unborn & before:
                os._exit(1)
            before = unborn


class HostActor:
    """A host in its own process, where it does what callers send.

    The host is built at the first call, so that its errors keep their type. Ray calls it from a thread for each caller,
    and from one more for each of the groups `baselines` and `commands`. A node may have joined after the driver looked
    at all there were: whatever keeps a host from being built there is a `ClusterError` to the trials that were given to
    it. A call on behalf of a study is answered by a host that holds what the study began with.

    Args:
        threads: CPU threads for computation.
        address: Of its node, as the cluster knows it.
    """

    def __init__(self, config: HostConfig, threads: int, address: str) -> None:
        threading.Thread(target=_end_with_unborn_threads, name="unborn-threads", daemon=True).start()
        self._config, self._threads, self._address = config, threads, address
        self._host: TrialHost | None = None
        self._loaded: dict[str, Identity] = {}  # by task: base and rows
        self._loading = threading.RLock()
        self._home_in_use = contextlib.ExitStack()  # until the process ends

    @ray.method
    def info(self, task: Task) -> HostInfo:
        """Describe base, rows and device; what is not loaded yet is loaded."""
        with self._loading:
            if self._host is None:
                _, verdict, differs, hint = compare_versions(with_python(), self._config.versions)
                if verdict == "fail":
                    message = f"Every node must have the driver's versions, but {self._address} has {differs}."
                    raise ClusterError(message, hint=hint)
                self._home_in_use.enter_context(in_use())
                self._host = self._config.make(self._config, task, self._threads)
            info = self._host.info(task)
            self._loaded[to_json(task)] = info.identity
            return info

    @ray.method
    def serve(
        self, work: Callable[[TrialHost], Any], task: Task, spec: TrialSpec | None, identity: Identity | None
    ) -> Any:
        """Do some work on the host, which has this task's rows, and what a trial starts from.

        Args:
            spec: The trial that asks, if one does: its study's identity counts.
            identity: Of the study that asks, if it knows that.
        Raises:
            ClusterError: this node has another base or other rows than a study began with, or none.
            StudyError: the study has lost what the trial starts from.
        """
        identity = spec.identity if spec else identity
        try:
            with self._loading:
                try:
                    if to_json(task) not in self._loaded:
                        cast("Any", self).info(task)
                except (BaseModelError, TaskDataError) as error:
                    if spec is None and identity is None:
                        raise
                    raise self._unfit(str(error), error.hint) from error  # the host that the study began with had both
                host, loaded = self._host, self._loaded[to_json(task)]
            if identity is not None and (differs := identity.difference(loaded)):
                hint = "put the files that the study began with at the same path on every node, or launch a new study"
                raise self._unfit(f"it has {differs}.", hint)
            if spec and spec.snapshot_store:
                for digest in (spec.hyperparameters.start_from, spec.hyperparameters.linear_probe):
                    if digest is not None and assets.lacks(digest):
                        store: Any = ray.get_actor(spec.snapshot_store, NAMESPACE)
                        assets.keep(ray.get(store.read_asset.remote(digest)))
            assert host is not None
            return work(host)
        except HomeError as error:
            raise HomeError(f"On node {self._address}: {error.message}", hint=error.hint) from error

    @ray.method(concurrency_group="baselines")
    def baselines(self, task: Task) -> tuple[Baseline, ...]:
        found: tuple[Baseline, ...] = cast("Any", self).serve(lambda host: host.baselines(task), task, None, None)
        return found

    @ray.method(concurrency_group="commands")
    def cancel(self, names: Collection[str]) -> None:
        """End trials before their next step; nothing is to be ended where the host is not built yet."""
        if (host := self._host) is not None:
            host.cancel(names)

    @ray.method(concurrency_group="commands")
    def steps(self) -> dict[str, int]:
        """Return the steps of the trials that are being advanced, by `TrialSpec.name`."""
        return {} if (host := self._host) is None else dict(host.steps())

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _unfit(self, why: str, hint: str | None) -> ClusterError:
        return ClusterError(f"Every node must be fit for the search, but {self._address} is not: {why}", hint=hint)


HostProxy = ActorProxy[HostActor]
