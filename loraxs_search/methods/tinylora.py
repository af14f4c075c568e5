"""TinyLoRA: LoRA-XS whose R is a sum of fixed random matrices, of which only the weights are trained.

delta_W = B (sum_i v_i P_i) A, with A and B from the base weight's SVD. Source: arXiv 2602.04118. PEFT stores A, B and
P; the base's weights and a seed give them back, and v alone is what was learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.methods._base import Conversion
from loraxs_search.methods._names import PROJECTION_SEED, TOP, Shapes, StoredTensor
from loraxs_search.methods._parameter_spec import ParameterSpec
from loraxs_search.methods._peft import LOW_RANK, PeftMethod
from loraxs_search.records import Hyperparameters, LinearModule, Scalar

if TYPE_CHECKING:
    from peft import TinyLoraConfig


class TinyLoRA(PeftMethod):
    """v starts at zero; a small layer's rank is its side.

    `num_groups` vectors are trained, each for layers that follow one another in the model; 0 is one for each layer.
    """

    name: ClassVar[str] = "tinylora"
    title: ClassVar[str] = "TinyLoRA"
    symbol: ClassVar[str] = "v"
    description: ClassVar[str] = "v (weights of fixed random matrices)"
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {
            "rank": ParameterSpec("int", low=1, high=65536),
            "vector_size": ParameterSpec("int", low=1, high=1 << 20, default=64),
            "num_groups": ParameterSpec("int", high=65536, default=0),
        }
    )
    sized_by: ClassVar[tuple[str, ...]] = ("rank", "vector_size", "num_groups")
    tuner: ClassVar[str] = "tinylora"
    projections: ClassVar[tuple[str, ...]] = ("tinylora_A", "tinylora_B", "tinylora_P")
    reads_weights: ClassVar[bool] = True
    conversions: ClassVar[Mapping[str, Conversion]] = LOW_RANK

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> TinyLoraConfig:
        from peft import TinyLoraConfig

        own: Mapping[str, Any] = self.params(hyper)
        return TinyLoraConfig(
            **attachment,
            r=own["rank"],
            u=own["vector_size"],
            weight_tying=1.0 - _num_groups(own, hyper.target_modules) / len(hyper.target_modules),
            projection_seed=PROJECTION_SEED,
        )

    def stored(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        return {}

    def stored_beside(
        self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]
    ) -> Mapping[str, StoredTensor]:
        size, beside = int(params["vector_size"]), dict[str, StoredTensor]()
        for group in range(_num_groups(params, modules)):
            beside[f"{TOP}tinylora_v.{group}"] = StoredTensor((size,))
        for module in modules:
            rank = min(int(params["rank"]), module.smaller_side)
            name = f"{TOP}model.{module.name}.tinylora"
            beside[f"{name}_A"] = StoredTensor((rank, module.in_features))
            beside[f"{name}_B"] = StoredTensor((module.out_features, rank))
            beside[f"{name}_P"] = StoredTensor((size, rank, rank))
        return beside

    def num_trained(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> int:
        return _num_groups(params, modules) * int(params["vector_size"])


def _num_groups(params: Mapping[str, Scalar], modules: Sequence[LinearModule] | Sequence[str]) -> int:
    return min(int(params["num_groups"]) or len(modules), len(modules))
