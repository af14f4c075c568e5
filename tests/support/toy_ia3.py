"""A method from outside the package: PEFT's IA3 has no R, needs no factors, and its trials cannot share passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from loraxs_search.methods._base import Shapes
from loraxs_search.methods._peft import PeftMethod
from loraxs_search.plugins import ParameterSpec
from loraxs_search.records.codec import Scalar
from loraxs_search.records.task import LinearModule
from loraxs_search.records.trial import Hyperparameters

if TYPE_CHECKING:
    from peft import IA3Config


class ToyIA3(PeftMethod):
    """Scales what enters or what leaves each layer by a vector, which starts at one."""

    name = "toy-ia3"
    title = "Toy IA3"
    symbol = "vectors"
    description = "vectors that scale the base's layers"
    parameters = MappingProxyType({"side": ParameterSpec("name", names=("output", "input"), default="output")})
    sized_by = ("side",)

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> IA3Config:
        from peft import IA3Config

        scales_input = self.params(hyper)["side"] == "input"
        return IA3Config(**attachment, feedforward_modules=attachment["target_modules"] if scales_input else [])

    def stored(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        scales_input = params["side"] == "input"
        return {
            f"{module.name}.ia3_l": (1, module.in_features) if scales_input else (module.out_features, 1)
            for module in modules
        }


class RankedIA3(ToyIA3):
    """The same with parameters of its own: one that LoRA-XS must have and it may leave out, and other words of one."""

    name = "ranked"
    title = "ranked IA3"
    parameters = MappingProxyType(
        {
            "rank": ParameterSpec("int", low=2, high=16, default=8),
            "side": ParameterSpec("name", names=("input", "both"), default="both"),
        }
    )
