"""VeRA: delta_W = diag(b) B diag(d) A, with B and A drawn once for all layers and the vectors b and d trained.

Layers may differ in shape: A and B are as large as the largest, and each layer takes its part. Source: arXiv
2310.11454.
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
    from peft import VeraConfig


class VeRA(PeftMethod):
    """b starts at zero, so a fresh adapter changes nothing; d starts at `d_initial`."""

    name: ClassVar[str] = "vera"
    title: ClassVar[str] = "VeRA"
    symbol: ClassVar[str] = "b, d"
    description: ClassVar[str] = "b and d (vectors beside one random projection)"
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {
            "rank": ParameterSpec("int", low=1, high=65536),
            "d_initial": ParameterSpec("float", above=True, default=0.1),
        }
    )
    sized_by: ClassVar[tuple[str, ...]] = ("rank",)
    tuner: ClassVar[str] = "vera"
    projections: ClassVar[tuple[str, ...]] = ("vera_A", "vera_B")
    reads_weights: ClassVar[bool] = True  # their dtype, which PEFT rounds the projection to
    conversions: ClassVar[Mapping[str, Conversion]] = LOW_RANK

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> VeraConfig:
        from peft import VeraConfig

        own: Mapping[str, Any] = self.params(hyper)
        return VeraConfig(**attachment, r=own["rank"], d_initial=own["d_initial"], projection_prng_key=PROJECTION_SEED)

    def stored(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        rank = int(params["rank"])
        vectors = {f"{module.name}.vera_lambda_b": (module.out_features,) for module in modules}
        return vectors | {f"{module.name}.vera_lambda_d": (rank,) for module in modules}

    def stored_beside(
        self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]
    ) -> Mapping[str, StoredTensor]:
        rank = int(params["rank"])
        return {
            f"{TOP}vera_A": StoredTensor((rank, max(module.in_features for module in modules))),
            f"{TOP}vera_B": StoredTensor((max(module.out_features for module in modules), rank)),
        }
