"""The actors that serve one study, and the facts its first host found."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from loraxs_search.base_model import check_packable
from loraxs_search.home import home
from loraxs_search.records import HostInfo, Scalar, TrialSpec
from loraxs_search.search.actors import StudyKeeper, here, pinned
from loraxs_search.search.cluster import NAMESPACE
from loraxs_search.search.pieces import Piece, spread
from loraxs_search.search.pool import HostPool
from loraxs_search.search_space import Space, describe
from loraxs_search.studies import StudyInfo

_AT_ONCE, _SAY_EVERY_S = 4, 2.0


class Crew:
    """The study's keeper, and its part of a pool of hosts; the keeper ends with it.

    Raises:
        BaseModelError, TaskDataError: the base or the data is not in order on the first host.
        RankError, TargetModulesError: the space asks for modules or ranks that the base does not have.
    """

    def __init__(self, study: StudyInfo, space: Space, pool: HostPool) -> None:
        self._study, self._space, self._pool = study, space, pool
        # By role: the names under which trainables find these actors.
        self.actor_names = {"directory": pool.directory_name, "keeper": f"keeper-{uuid.uuid4().hex}"}
        options = {
            "name": self.actor_names["keeper"],
            "namespace": NAMESPACE,
            # The driver's home, whatever this node's Ray was started with.
            "runtime_env": {"env_vars": {"LORAXS_HOME": str(home())}},
            **pinned(here()),
        }
        # It starts while the host loads.
        self._keeper: Any = StudyKeeper.options(**options).remote(study.name)  # type: ignore[attr-defined]
        try:
            self.info: HostInfo = pool.info(space.task)
            groups = describe(space, self.info.modules).groups  # refuses what no trial could be
            self._adaptable = {name for group in groups for name in group.modules}
            check_packable([m.name for m in self.info.modules if m.name in self._adaptable], self.info.unpackable)
            self.census = pool.census(self.info, study.search)
            ray.get(self._keeper.__ray_ready__.remote())
        except BaseException:
            self.dismiss()
            raise

    def decompose(self, say: Callable[[str], None]) -> None:
        """Have the factors of every layer that a trial may adapt at hand before the first one starts.

        Large bases take minutes, once: it says how far it is.
        """
        names = [m.name for m in self.info.modules if m.name in self._adaptable]
        parts = [names[i : i + _AT_ONCE] for i in range(0, len(names), _AT_ONCE)]
        said = time.monotonic()
        for basis in self._space.bases():
            for done, part in enumerate(parts):
                if time.monotonic() - said > _SAY_EVERY_S:
                    say(f"decomposing the base's weights, {basis}: {done * _AT_ONCE} of {len(names)}")
                    said = time.monotonic()
                self._pool.decompose(self._space.task, part, self._space.factor_rank(), basis)

    def dismiss(self) -> None:
        """End the keeper now."""
        ray.kill(self._keeper)

    def spread(self, pieces: Sequence[Piece], check_stopped: Callable[[], None], *, shared: bool = False) -> None:
        """Have every piece done on the pool's hosts; see `pieces.spread`.

        Args:
            shared: Pieces share passes where hosts pack.
        """
        spread(self._pool, pieces, check_stopped, at_once=self._pool.trials_at_once if shared else 1)

    def num_hosts(self) -> int:
        """Return how many hosts there are by now."""
        return len(self._pool.hosts())

    def factor_file(self, key: str) -> bytes:
        """Fetch a factor file from the first host."""
        return self._pool.factor_file(key, self._space.task)

    def spec(self, trial_id: str, params: Mapping[str, Scalar]) -> TrialSpec:
        """Resolve a trial's params against the base's modules; its seed depends on the plan's and its id alone."""
        seed = self._study.search.seed * 1_000_003 + int(trial_id)
        hyper = self._space.hyperparameters(params, self.info.modules, seed)
        return TrialSpec(trial_id, params, hyper, study=self._study.name)

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
