"""PSOFT: delta_W = B (R - I) A, with A and B from the base weight's SVD and R a trained rotation that may stretch.

Source: https://openreview.net/forum?id=FSHrinMArK, PEFT's `psoft`. Like LoRA-XS it stores nothing but what is trained
between singular vectors; its R turns them, and starts as the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.methods._base import Conversion
from loraxs_search.methods._names import Shapes
from loraxs_search.methods._parameter_spec import ParameterSpec
from loraxs_search.methods._peft import LOW_RANK, PeftMethod
from loraxs_search.methods._rank_law import check_ranks
from loraxs_search.records import Hyperparameters, LinearModule, Scalar

if TYPE_CHECKING:
    from peft import PsoftConfig

_SIDES = {"vector_b": ("both", "output"), "vector_a": ("both", "input")}  # which `magnitudes` train which vector


class PSOFT(PeftMethod):
    """PEFT's factor of the update cancels out of it, so there is no scale to search."""

    name: ClassVar[str] = "psoft"
    title: ClassVar[str] = "PSOFT"
    symbol: ClassVar[str] = "R"
    description: ClassVar[str] = "R (a rotation of the base's first singular vectors)"
    note: ClassVar[str] = (
        "R means something only between the singular vectors of this very base model, which are computed when it is "
        "loaded; another linear algebra library may compute others, which loading with this package shows where the "
        "base is in float32."
    )
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {
            "rank": ParameterSpec("int", low=1, high=65536),
            "core": ParameterSpec("name", names=("orthogonal", "free"), default="orthogonal"),
            "magnitudes": ParameterSpec("name", names=("both", "output", "input", "none"), default="both"),
        }
    )
    sized_by: ClassVar[tuple[str, ...]] = ("rank", "core", "magnitudes")
    tuner: ClassVar[str] = "psoft"
    reads_weights: ClassVar[bool] = True
    conversions: ClassVar[Mapping[str, Conversion]] = LOW_RANK

    def check(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> None:
        """Hold the rank against the smaller side of each layer.

        Raises:
            RankError: it is above one of them; the message names the smallest.
        """
        super().check(params, modules)
        least = 2 if params.get("core") == "orthogonal" else 1  # one direction cannot be turned
        check_ranks(int(params["rank"]), modules, least=least, remedy="choose another rank")

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> PsoftConfig:
        from peft import PsoftConfig

        own: Mapping[str, Any] = self.params(hyper)
        return PsoftConfig(
            **attachment,
            r=own["rank"],
            psoft_alpha=own["rank"],
            psoft_orth=own["core"] == "orthogonal",
            psoft_mag_b=own["magnitudes"] in _SIDES["vector_b"],
            psoft_mag_a=own["magnitudes"] in _SIDES["vector_a"],
        )

    def stored(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        rank = int(params["rank"])
        core = (rank * (rank - 1) // 2,) if params["core"] == "orthogonal" else (rank, rank)
        parts = {"weight": core} | {name: (rank,) for name, sides in _SIDES.items() if params["magnitudes"] in sides}
        return {f"{module.name}.psoft_R.{part}": shape for module in modules for part, shape in parts.items()}
