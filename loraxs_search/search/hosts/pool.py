"""The hosts of a cluster that serve one base: one for each device, shared by all studies that are searched together."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import ray
from ray import ObjectRef
from ray.actor import ActorProxy
from ray.exceptions import RayError

from loraxs_search.errors import ClusterError
from loraxs_search.records.host import HostInfo
from loraxs_search.records.literals import SearchDevice
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.search.cluster.connection import expected_versions, here, living_nodes, pinned, start_named
from loraxs_search.search.cluster.placement import PackSize, SlotCounter, choose_pack_size, share_out, unshared
from loraxs_search.search.hosts.answers import HOST_LOST, await_answer, kill
from loraxs_search.search.hosts.host_actor import HostActor
from loraxs_search.search.hosts.host_config import HostConfig
from loraxs_search.search_space.space import Space

_logger = logging.getLogger(__name__)
AnswerT = TypeVar("AnswerT")
HostProxy = ActorProxy[HostActor]
MAX_CALLERS = 1000  # inside a host at once: Ray makes a thread for each when the actor starts; others wait before it
_MAX_LOSSES = 3  # of hosts, until nobody is asked any more

# Threads that wait for each other sleep: spinning ones make a step up to six times slower on a machine that is also
# used by others. Read by OpenMP when torch is imported.
_HOST_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
# Baselines have their own thread: no trial waits for them. So have commands, which wait for no trial.
RemoteHost = ray.remote(concurrency_groups={"baselines": 1, "commands": 1})(HostActor)  # type: ignore[call-overload]  # not in Ray's
_DEVICES: Mapping[SearchDevice, str] = {"auto": "a GPU or a CPU", "gpu": "a GPU", "cpu": "a CPU"}


class HostDirectory:
    """Creates hosts on request, one per device, and owns them: an actor dies with the process that created it."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self._hosts: dict[tuple[str, str], HostProxy] = {}

    @ray.method
    def host_for(self, node_id: str, gpu: str | None, lost: HostProxy | None) -> HostProxy:
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

    @ray.method
    def preload(self, node_id: str, gpu: str | None, task: Task) -> None:
        """Have the host of a device load; nobody waits for it."""
        cast("Any", self).host_for(node_id, gpu, None).info.remote(task)

    @ray.method
    def hosts(self) -> list[HostProxy]:
        """Return every host there is, in the order they were created."""
        return list(self._hosts.values())

    def _create(self, node_id: str, gpu: str | None) -> HostProxy:
        """A host has all threads of its node; one of twice the CPUs of the smallest node serves twice its trials."""
        nodes = living_nodes()
        node = next((n for n in nodes if n.node_id == node_id), None)
        threads, times = 1, 1
        if gpu is None and node is not None and node.num_cpus:
            threads = node.num_cpus
            times = threads // min(n.num_cpus for n in nodes if n.num_cpus)
        elif gpu is None:  # it offers trials nothing, like a head that only drives
            threads = os.cpu_count() or 1
        config = self._config
        # A thread for each caller, and one so that a question is answered while all others wait for a round.
        callers = 1 + min(config.max_trials * times, MAX_CALLERS)
        if config.pack_size != "auto":
            config = replace(config, pack_size=config.pack_size * times)
        env = {"OMP_NUM_THREADS": str(threads), **_HOST_ENVIRONMENT}
        if gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = gpu
        actor = RemoteHost.options(runtime_env={"env_vars": env}, max_concurrency=callers, **pinned(node_id))
        return cast("HostProxy", actor.remote(config, threads, node.address if node else node_id))


class HostPool:
    """Owns the host directory; hosts end with it, at the end of the search.

    What one host does for all (facts, factors, scores) is done on a node that is alive at the time.

    Args:
        config: What every host is to be.
        plans: Of the studies that share the hosts; each gets its part of the slots.

    Raises:
        ClusterError: no node offers what a trial asks for, and none that would is expected.
    """

    def __init__(self, config: HostConfig, plans: Sequence[SearchPlan]) -> None:
        self.config = replace(config, versions=expected_versions())
        self._plans = tuple(plans)
        nodes = living_nodes()
        device = self._device = plans[0].device
        asked = share_out(nodes, 1, device).resources
        is_expected = any(plan.concurrent for plan in plans)  # of nodes that an autoscaler starts later
        if not is_expected and not any(node.offers(asked) for node in nodes):
            other = "" if device == "auto" else f", or leave out `search.device: {device}`"
            raise ClusterError(
                f"A cluster must have {_DEVICES[device]} to run trials on, but its nodes offer none.",
                hint=f"start Ray with --num-cpus or --num-gpus above 0{other}; where workers start later, "
                "give the number of trials that they hold: --set search.concurrent=N",
            )
        if self._device == "auto" and any(node.num_gpus for node in nodes):
            self._device = "gpu"  # also after the last GPU has left, as spot nodes do: another will come
        self._place: tuple[str, str | None] | None = None
        self.directory_name, self._directory = start_named(HostDirectory, self.config)  # its hosts die with it

    def preload(self, task: Task) -> None:
        """Have a first host load the base and a task's rows; what goes wrong is raised by its `info`."""
        self._directory.preload.remote(*self._living_place(), task)

    def host(self, lost: HostProxy | None = None) -> HostProxy:
        """Return the host for work that one host does for all, another one than a lost one."""
        return ray.get(self._directory.host_for.remote(*self._living_place(), lost))

    def hosts(self) -> list[HostProxy]:
        """Return all hosts that exist by now; at least one."""
        return ray.get(self._directory.hosts.remote()) or [self.host()]

    def ask(
        self,
        verb: Callable[[HostProxy], ObjectRef[AnswerT]],
        on_loop_step: Callable[[], None],
        begun: ObjectRef[AnswerT] | None = None,
    ) -> AnswerT:
        """Ask one host and await the answer; a host that dies, or whose node does, is replaced a few times.

        Args:
            verb: Asks it.
            on_loop_step: As of `await_answer`.
            begun: What a host was asked before; it is waited for first.
        Raises:
            RayError: hosts keep dying; one of `HOST_LOST`.
            ClusterError: the host's node is not fit for the search.
        """
        if begun is not None:
            with contextlib.suppress(*HOST_LOST):
                return await_answer(begun, on_loop_step)
        host = self.host()
        for _ in range(_MAX_LOSSES):
            try:
                return await_answer(verb(host), on_loop_step)
            except HOST_LOST:
                host = self.host(lost=host)
        return await_answer(verb(host), on_loop_step)

    def pack_size(self, info: HostInfo, space: Space) -> PackSize:
        """Choose how many trials share a device; the same for all studies."""
        asked = self.config.pack_size
        if space.is_packable:
            devices = share_out(living_nodes(), 1, self._device).num_slots
            num_trials = sum(plan.trials for plan in self._plans)
            chosen = choose_pack_size(
                asked, fits=info.num_slots, fills=info.full_slots, num_trials=num_trials, num_devices=devices
            )
        else:
            asked, chosen = space.search.pack_size, unshared(space.methods)
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

    def steps(self, study: str) -> Steps:
        """Return how far the trials of a study have got on the hosts that answer within seconds; of many, on some."""
        begin, steps = f"{study}/", dict[str, int]()
        for _, of_host in _answers([host.steps.remote() for host in self.hosts()[:_MAX_HOSTS]]):
            steps |= {name.removeprefix(begin): step for name, step in of_host.items() if name.startswith(begin)}
        return steps

    def cancel(self, study: str, trials: Collection[str]) -> None:
        """Have all hosts give up trials of a study; nobody waits for it.

        A host remembers nothing of a trial that it does not advance at the moment, and only the process that asks for a
        trial knows its host: whoever wants to be sure asks again.
        """
        names = [f"{study}/{trial_id}" for trial_id in trials]
        for host in self.hosts() if names else ():
            host.cancel.remote(names)

    def end_silent_hosts(self, study: str, trials: Collection[str]) -> None:
        """End the hosts that say nothing, or still hold one of these trials; the next calls find others in their place.

        Args:
            trials: Of a study, that should have reported long ago.
        """
        names = {f"{study}/{trial_id}" for trial_id in trials}
        asked = {host.steps.remote(): host for host in self.hosts()}
        fine = {answer for answer, steps in _answers(list(asked)) if not steps.keys() & names}
        for answer, host in asked.items():
            if answer not in fine:
                kill(host)

    def close(self) -> None:
        """End directory and hosts now."""
        kill(self._directory)

    @contextlib.contextmanager
    def watched(
        self, study: str, advanced: Callable[[Steps], None], to_cancel: Callable[[], Collection[str]]
    ) -> Iterator[None]:
        """Have hosts give up trials, and ask them now and then how far the others have got.

        Whatever goes wrong with that stops no search.

        Args:
            advanced: Called with what hosts say, unless it is empty, from a thread of its own.
            to_cancel: Returns the ids of the trials that are to end at their next step; called from that thread.
        """
        closing = threading.Event()

        def watch() -> None:
            for turn in itertools.count():
                try:
                    self.cancel(study, to_cancel())
                    if turn % _STEPS_EVERY == 0 and (steps := self.steps(study)) and not closing.is_set():
                        advanced(steps)
                except Exception as error:  # noqa: BLE001  # shown to users only, or asked again
                    _logger.info("hosts cannot be asked: %s", error)
                if closing.wait(_CANCEL_EVERY_S):
                    return

        thread = threading.Thread(target=watch, name="host-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            closing.set()
            thread.join(2 * _WAIT_S)

    def _living_place(self) -> tuple[str, str | None]:
        """Return the node and the GPU for what one host does for all: facts, factors, scores.

        A GPU if there is any; else the driver's own node if it offers CPUs, another that does, the driver's own at
        last. It stays while its node lives, unless a GPU comes.
        """
        nodes, own = living_nodes(), here()
        with_gpu = [node.node_id for node in nodes if node.num_gpus > 0 and self._device != "cpu"]
        with_cpu = [node.node_id for node in nodes if node.num_cpus > 0]
        place = (with_gpu[0], "0") if with_gpu else (with_cpu[0] if with_cpu and own not in with_cpu else own, None)
        is_gone = self._place is None or self._place[0] not in {node.node_id for node in nodes}
        if is_gone or (self._place and self._place[1] is None and place[1] is not None):
            self._place = place
        return self._place or place


_WAIT_S = 5.0
_CANCEL_EVERY_S, _STEPS_EVERY = 1.0, 3  # seconds, and turns of these
_MAX_HOSTS = 100  # whose steps are asked for: a call takes a fraction of a millisecond, and nobody looks at more
Steps = Mapping[str, int]  # by trial


def _answers(asked: list[ObjectRef[AnswerT]]) -> Iterator[tuple[ObjectRef[AnswerT], AnswerT]]:
    """Yield what is answered within seconds, each answer behind its reference."""
    done, _ = ray.wait(asked, num_returns=len(asked), timeout=_WAIT_S)
    for answer in done:
        with contextlib.suppress(RayError):  # the host is lost: the others are not
            yield answer, ray.get(answer)
