"""IA3: a vector scales what enters or what leaves each layer; it starts at one. Source: arXiv 2205.05638."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.methods._names import Shapes
from loraxs_search.methods._parameter_spec import ParameterSpec
from loraxs_search.methods._peft import PeftMethod
from loraxs_search.records import Hyperparameters, LinearModule, Scalar

if TYPE_CHECKING:
    from peft import IA3Config

# The layers that take a feed-forward block's hidden states back, by their names in transformers' models.
_LAST_OF_BLOCK = re.compile(
    r"(^|\.)(output\.dense|down_proj|lin2|fc2|fc_out|wo|Wo|c_proj|dense_4h_to_h|w2|layer_2|ffn_output)$"
)


class IA3(PeftMethod):
    """`scaled: paper` scales the input of a feed-forward block's last layer and the output of every other layer."""

    name: ClassVar[str] = "ia3"
    title: ClassVar[str] = "IA3"
    symbol: ClassVar[str] = "vectors"
    description: ClassVar[str] = "vectors that scale the base's layers"
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {"scaled": ParameterSpec("name", names=("paper", "output", "input"), default="paper")}
    )
    sized_by: ClassVar[tuple[str, ...]] = ("scaled",)
    tuner: ClassVar[str] = "ia3"

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> IA3Config:
        from peft import IA3Config

        scaled = self.params(hyper)["scaled"]
        inputs = [name for name in hyper.target_modules if _scales_input(scaled, name)]
        return IA3Config(**attachment, feedforward_modules=inputs)

    def stored(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        return {
            f"{module.name}.ia3_l": (1, module.in_features)
            if _scales_input(params["scaled"], module.name)
            else (module.out_features, 1)
            for module in modules
        }


def _scales_input(scaled: Scalar, name: str) -> bool:
    is_last = bool(_LAST_OF_BLOCK.search(name)) and "attention" not in name and "attn" not in name
    return scaled == "input" or (scaled == "paper" and is_last)
