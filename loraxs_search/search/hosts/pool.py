"""The hosts of a cluster that serve one base: one for each device, shared by all studies that are searched together.

Threads beside the search's loop ask them how busy they are and how far trials have got, and have them give up trials
that people have stopped.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Generic, TypeVar, cast

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from loraxs_search.records.host import HostInfo
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.search.cluster import runtime_env
from loraxs_search.search.cluster.connection import MAX_RESTARTS, NAMESPACE, here, living_nodes, pinned
from loraxs_search.search.cluster.placement import (
    PackSize,
    SlotCounter,
    check_can_run,
    choose_pack_size,
    first_place,
    host_shape,
    share_out,
)
from loraxs_search.search.hosts.client import DirectoryHandle, HostClient, HostHandle, kill
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


_logger = logging.getLogger(__name__)


class HostPool:
    """Owns the host directory; hosts end with it, at the end of the search.

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
        nodes = living_nodes()
        check_can_run(nodes, plans[0].device, next((p.concurrent for p in plans if p.concurrent), None))
        self._device = plans[0].device
        if self._device == "auto" and any(node.num_gpus for node in nodes):
            self._device = "gpu"  # also after the last GPU has left, as spot nodes do: another will come
        self._place: tuple[str, str | None] | None = None
        self.directory_name, self._directory = start_directory(self.config)

    def preload(self, task: Task) -> None:
        """Have a first host load the base and a task's rows; what goes wrong is raised by its `info`."""
        self._directory.preload.remote(*self._living_place(), task)

    def host(self) -> HostClient:
        """Return the host for work that one host does for all."""
        return HostClient(self._find, self._find(None))

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
            _logger.warning(message, asked, chosen.reason, chosen.size)
        return chosen

    def slot_counter(self, size: int, plan: SearchPlan) -> SlotCounter:
        """Return the counter of slots for one of the studies, as nodes come and go.

        Args:
            size: Trials that share a device. Each study has its own slot at least: trials that cannot share passes
                take turns on the host, whatever study they are of.
        """
        devices = share_out(living_nodes(), 1, self._device).num_slots
        least = math.ceil(len(self._plans) / max(1, devices))
        return SlotCounter(
            lambda: share_out(living_nodes(), max(size, least), self._device),
            concurrent=plan.concurrent,
            num_studies=len(self._plans),
        )

    def end_silent_hosts(self, names: Collection[str]) -> None:
        """End the hosts that say nothing, or still hold one of these trials; the next calls find others in their place.

        Args:
            names: `TrialSpec.name` of trials that should have reported long ago.
        """
        asked = {host.steps(): host for host in self.hosts()}
        fine = {answer for answer, steps in _answers(list(asked)) if not steps.keys() & set(names)}
        for answer, host in asked.items():
            if answer not in fine:
                kill(host.actor)

    def close(self) -> None:
        """End directory and hosts now."""
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


_WAIT_S = 5.0
_MAX_HOSTS = 100  # whose steps are asked for: a call takes a fraction of a millisecond, and nobody looks at more
Usage = Mapping[str, Mapping[str, float]]  # readings by the address of a node
Steps = Mapping[str, int]  # by trial
AnswerT = TypeVar("AnswerT")


class HostWatch(Generic[AnswerT]):
    """A context in which a thread asks; what cannot be asked, or recorded, stops no search.

    Args:
        ask: Returns what hosts say; nothing is recorded where that is empty.
        record: Called with it.
        every_s: Seconds between two questions.
    """

    def __init__(self, ask: Callable[[], AnswerT], record: Callable[[AnswerT], None], every_s: float) -> None:
        self._ask, self._record, self._every_s = ask, record, every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="host-watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(2 * _WAIT_S)

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                if (answer := self._ask()) and not self._closing.is_set():
                    self._record(answer)
            except Exception as error:  # noqa: BLE001  # shown to users only: a search does without
                _logger.info("hosts cannot be asked: %s", error)
            self._closing.wait(self._every_s)


def pool_usage(pool: HostPool) -> Usage:
    """Return what the hosts of a pool say within seconds; those of one node together."""
    usage: dict[str, dict[str, float]] = {}
    for _, (address, readings) in _answers([host.usage() for host in pool.hosts()]):
        usage.setdefault(address, {}).update(readings)
    return usage


def pool_steps(pool: HostPool, study: str) -> Steps:
    """Return how far the trials of a study have got on the hosts that answer within seconds; of many hosts, on some."""
    begin, steps = f"{study}/", dict[str, int]()
    for _, of_host in _answers([host.steps() for host in pool.hosts()[:_MAX_HOSTS]]):
        steps |= {name.removeprefix(begin): step for name, step in of_host.items() if name.startswith(begin)}
    return steps


def _answers(asked: list[ObjectRef[AnswerT]]) -> Iterator[tuple[ObjectRef[AnswerT], AnswerT]]:
    """Yield what is answered within seconds, each answer behind its reference."""
    done, _ = ray.wait(asked, num_returns=len(asked), timeout=_WAIT_S)
    for answer in done:
        try:
            yield answer, ray.get(answer)
        except RayError:  # the host is lost: the others are not
            continue


_AGAIN_S = 1.0


class TrialCanceller:
    """Asks every host again and again, as long as there is a trial to give up.

    A host remembers nothing of a trial that it does not advance at the moment, and which host has it only the process
    that asks for it knows. A host that is lost has given it up.
    """

    def __init__(self, pool: HostPool, study: str) -> None:
        self._pool, self._study = pool, study
        self._thread = ThreadPoolExecutor(1, "give-up")
        self._next = 0.0

    def on_loop_step(self, trial_ids: Sequence[str]) -> None:
        """Ask about these trials, unless that was done a moment ago; returns at once."""
        if trial_ids and time.monotonic() >= self._next:
            self._next = time.monotonic() + _AGAIN_S
            self._thread.submit(self._ask, [f"{self._study}/{trial_id}" for trial_id in trial_ids])

    def close(self) -> None:
        """Ask no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ask(self, names: Sequence[str]) -> None:
        try:
            for host in self._pool.hosts():
                host.cancel(names)  # nobody waits for the answer
        except RayError as error:
            _logger.info("hosts cannot be asked to give up trials: %s", error)
