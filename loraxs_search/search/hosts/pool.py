"""The actors of a search: hosts, one for each device, shared by all studies that are searched together on one base.

And those of one study: its snapshot store, which has its files, and its part of the hosts.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, cast

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from loraxs_search.base_model.packable import check_packable
from loraxs_search.errors import ClusterError, StudyError
from loraxs_search.home import home
from loraxs_search.methods import method_of
from loraxs_search.records.adapter import HostInfo
from loraxs_search.records.codec import Basis, Scalar, SearchDevice
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import Identity, Task
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search.cluster.connection import expected_versions, living_nodes, pinned, start_named
from loraxs_search.search.cluster.placement import PackSize, SlotCounter, choose_pack_size, share_out, unshared
from loraxs_search.search.hosts.answers import HOST_LOST, Ask, kill, on_host
from loraxs_search.search.hosts.host_actor import HostActor, HostConfig, HostProxy
from loraxs_search.search_space.space import Space, describe
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.record_files import StudyInfo
from loraxs_search.tasks.report import data_warnings

_logger = logging.getLogger(__name__)
AnswerT = TypeVar("AnswerT")
MAX_CALLERS = 1000  # inside a host at once: Ray makes a thread for each when the actor starts; others wait before it
_LOOK_EVERY_S = 0.5
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
    def host_for(self, node_id: str, gpu: str | None, lost: HostProxy | None, task: Task | None) -> HostProxy:
        """Return the host of a device, created if it is missing or is the one that the caller has lost.

        A lost one may live, behind a network that was cut: it is ended, since a device holds the base once. A host has
        all threads of its node; one of twice the CPUs of the smallest node serves twice its trials.

        Args:
            task: Have it load that; nobody waits for it.
        """
        key = (node_id, gpu or "cpu")
        host = self._hosts.get(key)
        if host is not None and lost is not None and host == lost:
            kill(host)
            host = None
        if host is None:
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
            host = cast("HostProxy", actor.remote(config, threads, node.address if node else node_id))
            self._hosts[key] = host
        if task is not None:
            host.info.remote(task)
        return host

    @ray.method
    def hosts(self) -> list[HostProxy]:
        """Return every host there is, in the order they were created."""
        return list(self._hosts.values())


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
        self._directory.host_for.remote(*self._living_place(), None, task)

    def host(self, lost: HostProxy | None = None) -> HostProxy:
        """Return the host for work that one host does for all, another one than a lost one."""
        return ray.get(self._directory.host_for.remote(*self._living_place(), lost, None))

    def hosts(self) -> list[HostProxy]:
        """Return all hosts that exist by now; at least one."""
        return ray.get(self._directory.hosts.remote()) or [self.host()]

    def ask(
        self,
        ask: Ask[AnswerT],
        on_loop_step: Callable[[], None],
        begun: ObjectRef[AnswerT] | None = None,
    ) -> AnswerT:
        """Ask one host and await the answer; a host that dies, or whose node does, is replaced a few times.

        Args:
            on_loop_step: Called several times a second meanwhile; raises when the search was stopped from outside.
            begun: What a host was asked before; it is waited for first.
        Raises:
            RayError: hosts keep dying; one of `HOST_LOST`.
            ClusterError: the host's node is not fit for the search.
        """
        host, answer, losses_left = None, begun, _MAX_LOSSES + (begun is not None)
        while True:
            if answer is None:
                host = self.host(lost=host)
                answer = ask(host)
            try:
                while not ray.wait([answer], timeout=_LOOK_EVERY_S)[0]:
                    on_loop_step()
                return ray.get(answer)
            except HOST_LOST:
                if not losses_left:
                    raise
                answer, losses_left = None, losses_left - 1

    def share(self, info: HostInfo, space: Space, plan: SearchPlan) -> tuple[PackSize, SlotCounter]:
        """Choose how many trials share a device, the same for all studies; return also how many a study may run."""
        asked, devices = self.config.pack_size, share_out(living_nodes(), 1, self._device).num_slots
        if space.is_packable:
            num_trials = sum(plan.trials for plan in self._plans)
            chosen = choose_pack_size(
                asked, fits=info.num_slots, fills=info.full_slots, num_trials=num_trials, num_devices=devices
            )
        else:
            asked, chosen = space.search.pack_size, unshared(space.methods)
        if asked != "auto" and chosen.size < asked:
            message = "`search.pack_size` is %d, but %s: it is %d for this search."
            _logger.warning(message, asked, chosen.reason, chosen.size)
        # Each study has its own slot at least: trials that cannot share passes take turns, whatever study they are of.
        studies = len(self._plans)
        size = max(chosen.size, math.ceil(studies / max(1, devices)))
        counter = SlotCounter(living_nodes, size, self._device, concurrent=plan.concurrent, num_studies=studies)
        return chosen, counter

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
            advanced: Called with what hosts say, unless it is empty, from its own thread.
            to_cancel: Returns the ids of the trials that are to end at their next step; called from that thread.
        """
        closing, begin = threading.Event(), f"{study}/"

        def watch() -> None:
            for turn in itertools.count():
                try:
                    # A host remembers nothing of a trial that it does not advance at the moment, and only the process
                    # that asks for a trial knows its host: all are asked, again and again.
                    names = [f"{begin}{trial_id}" for trial_id in to_cancel()]
                    for host in self.hosts() if names else ():
                        host.cancel.remote(names)
                    if turn % _STEPS_EVERY == 0:
                        asked = [host.steps.remote() for host in self.hosts()[:_MAX_HOSTS]]
                        of_all = [item for _, of_host in _answers(asked) for item in of_host.items()]
                        steps = {name.removeprefix(begin): step for name, step in of_all if name.startswith(begin)}
                        if steps and not closing.is_set():
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
        nodes, own = living_nodes(), str(ray.get_runtime_context().get_node_id())
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


# ---- of one study ----------------------------------------------------------------------------------------------------
class SnapshotStore:
    """Keeps trial snapshots in the study folder, on the driver's node: no shared file system is needed.

    Hosts on other nodes get the study's assets from it. All that it knows is in the folder, and every call may be
    repeated: Ray starts a process that dies anew, and asks that one what the first had not answered.
    """

    def __init__(self, name: str, home: str) -> None:
        os.environ["LORAXS_HOME"] = home  # the driver's, whatever this node's Ray was started with
        self._name = name

    @functools.cached_property
    def _folder(self) -> StudyFolder:  # the snapshot store starts before there is one
        return StudyFolder.open(self._name)

    @ray.method
    def read_asset(self, digest: str) -> bytes:
        return self._folder.read_asset(digest)

    @ray.method
    def read_snapshot(self, trial_id: str) -> bytes | None:
        return self._folder.snapshots.read(trial_id)

    @ray.method
    def write_snapshot(self, trial_id: str, snapshot: bytes) -> None:
        self._folder.snapshots.write(trial_id, snapshot)


_AT_ONCE, _SAY_EVERY_S = 4, 2.0
_SHORT_WORK = 2e10  # out x in x min(out, in), summed: some eight seconds on one core


class StudyActors:
    """The study's snapshot store, which ends with it, and the pool of hosts that it has a part of.

    Args:
        check_stop: Called several times a second while a host is waited for; raises when the search is to stop.
        recorded: What the study began with; None if that is not known.
    Raises:
        StudyError: the first host has another base or other rows than those recorded.
        BaseModelError, TaskDataError: the first host cannot use the base or the data.
        UsageError: the space asks for modules or ranks that the base does not have.
    """

    def __init__(
        self,
        study: StudyInfo,
        space: Space,
        pool: HostPool,
        check_stop: Callable[[], None],
        recorded: Identity | None = None,
    ) -> None:
        self._study, self._space, self.pool, self.check_stop = study, space, pool, check_stop
        self.start_from: str | None = None  # the asset that trials start from
        self.linear_probe: Callable[[], str | None] = lambda: None  # returns the asset that heads start from
        # It starts while the host loads.
        self.snapshot_store_name, self.snapshot_store = start_named(SnapshotStore, study.name, str(home()))
        try:
            self.info: HostInfo = pool.ask(lambda host: host.info.remote(space.task), check_stop)
            if recorded is not None and (differs := recorded.difference(self.info.identity)):
                raise StudyError(
                    f"Study {study.name!r} must go on with the base and the data that it began with, but the files now"
                    f" have {differs}.",
                    hint="put the files back that it began with, or launch a new study",
                )
            for warning in data_warnings(self.info.data, self.info.num_rows, space.task.metric):
                _logger.warning("task %s: %s", space.task.name, warning)
            groups = describe(space, self.info.modules).groups  # refuses what no trial could be
            self._adaptable = {name for group in groups for name in group.modules}
            check_packable([m.name for m in self.info.modules if m.name in self._adaptable], self.info.unpackable)
            self.pack_size, self.slot_counter = pool.share(self.info, space, study.search)
        except BaseException:
            self.close()
            raise

    def prepare_factors(self, say: Callable[[str], None]) -> None:
        """Have the first host get the factors of every layer that a trial may adapt, before it trains the first one.

        Large bases take minutes, once: that is waited for, and it says how far it is. With small ones the processes of
        trials start at the same time. A host that dies is no loss: whatever needs a factor gets it.

        Raises:
            HomeError: the factors cannot be kept.
        """
        adaptable = [module for module in self.info.modules if module.name in self._adaptable]
        names = [module.name for module in adaptable]
        parts = [names[i : i + _AT_ONCE] for i in range(0, len(names), _AT_ONCE)]
        sets, task, host = self._space.factor_sets(), self._space.task, self.pool.host()

        def ask(names: Sequence[str], basis: Basis, rank: int) -> ObjectRef[None]:
            return on_host(lambda host: host.decompose(names, rank, basis), task)(host)

        pending = [ask(part, basis, rank) for basis, rank in sets for part in parts]
        work = sum(m.out_features * m.in_features * min(m.out_features, m.in_features) for m in adaptable)
        if work * len(sets) <= _SHORT_WORK:
            return
        total, reported_at = len(pending), time.monotonic()
        while pending:
            done, pending = ray.wait(pending, timeout=_LOOK_EVERY_S)
            self.check_stop()
            with contextlib.suppress(*HOST_LOST):  # trials go on with another one, which gets what it needs
                ray.get(done)
            if pending and time.monotonic() - reported_at > _SAY_EVERY_S:
                say(f"decomposing the base's weights: {total - len(pending)} of {total} parts")
                reported_at = time.monotonic()

    def close(self) -> None:
        """End the snapshot store now."""
        kill(self.snapshot_store)

    def spec(self, trial_id: str, params: Mapping[str, Scalar]) -> TrialSpec:
        """Resolve a trial's params against the base's modules; its seed depends only on the plan's and its id."""
        seed = self._study.search.trial_seed(int(trial_id))
        hyper = self._space.hyperparameters(params, self.info.modules, seed)
        if method_of(hyper).can_start:
            hyper = replace(hyper, start_from=self.start_from)
        if hyper.head_init == "probe":
            probe = self.linear_probe()
            hyper = replace(hyper, linear_probe=probe, head_init="probe" if probe else "random")
        name, identity, store = self._study.name, self.info.identity, self.snapshot_store_name
        return TrialSpec(trial_id, params, hyper, study=name, identity=identity, snapshot_store=store)

    def hardware(self) -> tuple[dict[str, Scalar], list[str]]:
        """Describe the cluster for the record, and name the kinds of accelerator in it as Ray does."""
        total: Mapping[str, float] = ray.cluster_resources()
        kinds = (name.removeprefix("accelerator_type:") for name in total if ":" in name)
        facts: dict[str, Scalar] = {
            "device": self.info.device,
            "dtype": self.info.dtype,
            "base_digest": self.info.base.weight_digest,
            "data_fingerprint": self.info.data_fingerprint,
            **self.info.data.counts,
            "num_nodes": len(living_nodes()),
            "num_cpus": int(total.get("CPU", 0)),
            "num_gpus": int(total.get("GPU", 0)),
            "trials_per_device": self.pack_size.size,
        }
        return facts, sorted(kind for kind in kinds if not kind.startswith(("node", "bundle")))
