"""The actors that serve one study: its snapshot store, which has its files, and its part of the hosts."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import ray

from loraxs_search.base_model.packable import check_packable
from loraxs_search.errors import StudyError
from loraxs_search.home import home
from loraxs_search.methods import method_of
from loraxs_search.records.base import Identity
from loraxs_search.records.host import HostInfo
from loraxs_search.records.literals import Scalar
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search.cluster.connection import living_nodes, start_named
from loraxs_search.search.hosts.answers import HOST_LOST, LOOK_EVERY_S, await_answer, kill
from loraxs_search.search.hosts.pool import HostPool
from loraxs_search.search_space.space import Space, describe
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.info import StudyInfo
from loraxs_search.tasks.report import data_warnings, overlap_counts


class SnapshotStore:
    """Keeps trial snapshots in the study folder, on the driver's node: no shared file system is needed.

    Hosts on other nodes get the study's assets from it. All that it knows is in the folder, and every call may be
    repeated: Ray starts a process that dies anew, and asks that one what the first had not answered.
    """

    def __init__(self, name: str, home: str) -> None:
        os.environ["LORAXS_HOME"] = home  # the driver's, whatever this node's Ray was started with
        self._name = name
        self._folder: StudyFolder | None = None  # opened at first use: the snapshot store starts before there is one

    @ray.method
    def ready(self) -> None:
        """Return once this process has started."""

    @ray.method
    def read_asset(self, digest: str) -> bytes:
        return self._open().read_asset(digest)

    @ray.method
    def read_snapshot(self, trial_id: str) -> bytes | None:
        return self._open().snapshots.read(trial_id)

    @ray.method
    def write_snapshot(self, trial_id: str, snapshot: bytes) -> None:
        self._open().snapshots.write(trial_id, snapshot)

    def _open(self) -> StudyFolder:
        self._folder = self._folder or StudyFolder.open(self._name)
        return self._folder


_logger = logging.getLogger(__name__)
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
        RankError, TargetModulesError: the space asks for modules or ranks that the base does not have.
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
            self.pack_size = pool.pack_size(self.info, space)
            self.slot_counter = pool.slot_counter(self.pack_size.size, study.search)
            await_answer(self.snapshot_store.ready.remote(), check_stop)
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
        pending = [host.decompose.remote(task, part, each.rank, each.basis) for each in sets for part in parts]
        work = sum(m.out_features * m.in_features * min(m.out_features, m.in_features) for m in adaptable)
        if work * len(sets) <= _SHORT_WORK:
            return
        total, reported_at = len(pending), time.monotonic()
        while pending:
            done, pending = ray.wait(pending, timeout=LOOK_EVERY_S)
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
            **overlap_counts(self.info.data),
            "num_nodes": len(living_nodes()),
            "num_cpus": int(total.get("CPU", 0)),
            "num_gpus": int(total.get("GPU", 0)),
            "trials_per_device": self.pack_size.size,
        }
        return facts, sorted(kind for kind in kinds if not kind.startswith(("node", "bundle")))
