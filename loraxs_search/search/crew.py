"""The actors that serve one search, and the facts its first host found."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError

from loraxs_search.records import Confirmation, HostInfo, Scalar, TrialSpec
from loraxs_search.search.actors import HostDirectory, HostOrder, StudyKeeper, pinned
from loraxs_search.search.cluster import NAMESPACE, Slots, gpu_node_ids, slots
from loraxs_search.search_space import Space, describe
from loraxs_search.studies import StudyInfo


class Crew:
    """Host directory, first host and study keeper of one run of a driver; all end with it.

    Args:
        names: Roles (`directory`, `keeper`) to the names under which trainables find these actors.
    """

    def __init__(
        self, names: dict[str, str], directory: Any, place: tuple[str, str | None], info: HostInfo, wanted: Slots
    ) -> None:
        self.actor_names, self._directory, self._place = names, directory, place
        self.info, self.slots = info, wanted
        self._keeper: Any = None

    @classmethod
    def assemble(cls, study: StudyInfo, space: Space) -> Crew:
        """Create the directory and a first host, and check that every trial of `space` is possible on its base.

        Raises:
            BaseModelError, TaskDataError: the base or the data is not in order on that host.
            RankError, TargetModulesError: the space asks for modules or ranks that the base does not have.
        """
        wanted = slots(study.search.pack_size)
        names = {role: f"{role}-{uuid.uuid4().hex}" for role in ("directory", "keeper")}
        options = {"name": names["directory"], "namespace": NAMESPACE, **pinned(_here())}
        plan = study.search
        order = HostOrder(space.base_model, space.task, plan.precision, wanted.threads, plan.pack_size)
        directory = HostDirectory.options(**options).remote(order)  # type: ignore[attr-defined]
        gpu_nodes = gpu_node_ids()
        place = (gpu_nodes[0], "0") if gpu_nodes else (_here(), None)
        try:
            host = ray.get(directory.host_for.remote(*place))
            info: HostInfo = ray.get(host.info.remote())
            describe(space, info.modules)
        except BaseException:
            ray.kill(directory)
            raise
        return cls(names, directory, place, info, wanted)

    def hire_keeper(self, study: str) -> None:
        """Start the keeper of the study's snapshots on the driver's node."""
        options = {"name": self.actor_names["keeper"], "namespace": NAMESPACE, **pinned(_here())}
        self._keeper = StudyKeeper.options(**options).remote(study)  # type: ignore[attr-defined]
        ray.get(self._keeper.__ray_ready__.remote())

    def dismiss(self) -> None:
        """End the actors now; hosts die with the directory that created them."""
        for actor in filter(None, (self._keeper, self._directory)):
            ray.kill(actor)

    def confirm(self, spec: TrialSpec, snapshot: bytes, *, score: bool) -> Confirmation:
        """Have the first host write out a trained adapter and score it on the test split.

        A host that died is replaced once.
        """
        host = ray.get(self._directory.host_for.remote(*self._place))
        try:
            return ray.get(host.confirm.remote(spec, snapshot, score))  # type: ignore[no-any-return]
        except RayActorError:
            host = ray.get(self._directory.host_for.remote(*self._place, lost=host))
            return ray.get(host.confirm.remote(spec, snapshot, score))  # type: ignore[no-any-return]

    def spec(self, space: Space, trial_id: str, params: Mapping[str, Scalar], seed: int) -> TrialSpec:
        """Resolve a trial's params against the base's modules; its seed depends on the plan's and its id alone."""
        hyper = space.hyperparameters(params, self.info.modules, seed * 1_000_003 + int(trial_id))
        return TrialSpec(trial_id, params, hyper)

    def hardware(self) -> dict[str, Scalar]:
        """Describe the cluster for the record."""
        total = ray.cluster_resources()
        return {
            "device": self.info.device,
            "dtype": self.info.dtype,
            "base_digest": self.info.base.weight_digest,
            "data_fingerprint": self.info.data_fingerprint,
            "num_nodes": len([node for node in ray.nodes() if node["Alive"]]),
            "num_cpus": int(total.get("CPU", 0)),
            "num_gpus": int(total.get("GPU", 0)),
        }

    def gpus(self) -> list[str]:
        """Return the kinds of accelerator in the cluster, as Ray names them."""
        kinds = (name.removeprefix("accelerator_type:") for name in ray.cluster_resources() if ":" in name)
        return sorted(kind for kind in kinds if not kind.startswith(("node", "bundle")))


def _here() -> str:
    return str(ray.get_runtime_context().get_node_id())
