"""Uni-LoRA: every entry of LoRA's matrices is one of the numbers of a single trained vector. Source: arXiv 2506.00799.

Which one a seed says, so the vector alone is stored.
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
    from peft import UniLoraConfig


class UniLoRA(PeftMethod):
    """The vector is drawn from the trial's seed, uniformly within `init_bound` of zero."""

    name: ClassVar[str] = "unilora"
    title: ClassVar[str] = "Uni-LoRA"
    symbol: ClassVar[str] = "theta"
    description: ClassVar[str] = "theta (the one vector that all matrices are made of)"
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {
            "rank": ParameterSpec("int", low=1, high=65536),
            "vector_size": ParameterSpec("int", low=1, high=1 << 24, default=256),
            "init_bound": ParameterSpec("float", above=True, default=0.02),
        }
    )
    sized_by: ClassVar[tuple[str, ...]] = ("vector_size",)
    tuner: ClassVar[str] = "unilora"
    reads_weights: ClassVar[bool] = True  # their dtype, which PEFT rounds the entries' factors to
    conversions: ClassVar[Mapping[str, Conversion]] = LOW_RANK

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> UniLoraConfig:
        from peft import UniLoraConfig

        own: Mapping[str, Any] = self.params(hyper)
        return UniLoraConfig(
            **attachment,
            r=own["rank"],
            theta_d_length=own["vector_size"],
            init_theta_d_bound=own["init_bound"],
            proj_seed=PROJECTION_SEED,
        )

    def stored(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        return {}

    def stored_beside(
        self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]
    ) -> Mapping[str, StoredTensor]:
        return {f"{TOP}unilora_theta_d": StoredTensor((int(params["vector_size"]),))}

    def num_trained(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> int:
        return int(params["vector_size"])
