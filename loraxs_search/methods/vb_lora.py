"""VB-LoRA: LoRA's matrices are mixed, piece by piece, of the vectors in one bank. Source: arXiv 2405.15179.

Of each mixture the best `topk` weights count, and they alone are stored: the file is for use, not for training on. A
trial's own state holds all logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.errors import UsageError
from loraxs_search.methods._base import Conversion
from loraxs_search.methods._names import TOP, Shapes, StoredTensor
from loraxs_search.methods._parameter_spec import ParameterSpec
from loraxs_search.methods._peft import LOW_RANK, PeftMethod
from loraxs_search.records import Hyperparameters, LinearModule, Scalar

if TYPE_CHECKING:
    from peft import VBLoRAConfig


class VBLoRA(PeftMethod):
    """Bank and logits are drawn from the trial's seed; a fresh adapter changes little."""

    name: ClassVar[str] = "vb-lora"
    title: ClassVar[str] = "VB-LoRA"
    symbol: ClassVar[str] = "bank"
    description: ClassVar[str] = "a bank of vectors, and how each layer mixes them"
    note: ClassVar[str] = "The weights of the best vectors are stored, not all logits: it cannot be trained on."
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {
            "rank": ParameterSpec("int", low=1, high=65536),
            "num_vectors": ParameterSpec("int", low=2, high=1 << 20, default=256),
            "vector_length": ParameterSpec("int", low=1, high=65536, default=64),
            "topk": ParameterSpec("int", low=2, high=1024, default=2),
        }
    )
    sized_by: ClassVar[tuple[str, ...]] = ("rank", "num_vectors", "vector_length", "topk")
    tuner: ClassVar[str] = "vblora"
    conversions: ClassVar[Mapping[str, Conversion]] = LOW_RANK

    def check(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> None:
        """Hold the vectors' length against both sides of each layer, and `topk` against their number.

        Raises:
            UsageError: a side is no multiple of it, or there are fewer vectors than are mixed.
        """
        super().check(params, modules)
        length = int(params["vector_length"])
        for module in modules:
            if module.in_features % length or module.out_features % length:
                raise UsageError(
                    f"`vector_length` must divide both sides of every adapted layer, but got {length} for "
                    f"{module.name} of {module.in_features} x {module.out_features}.",
                    hint="choose a common divisor of the layers' sides, such as 64",
                )
        if int(params["topk"]) > int(params["num_vectors"]):
            raise UsageError(
                f"`topk` must be at most `num_vectors`, but got topk={params['topk']} of {params['num_vectors']}."
            )

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> VBLoRAConfig:
        from peft import VBLoRAConfig

        own: dict[str, Any] = dict(self.params(hyper))
        return VBLoRAConfig(**attachment, r=own.pop("rank"), **own, save_only_topk_weights=True)

    def stored(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        topk = int(params["topk"])
        return {f"{name}_topk_weights": (*shape, topk - 1) for name, shape in _mixtures(params, modules)}

    def stored_beside(
        self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]
    ) -> Mapping[str, StoredTensor]:
        topk, num_vectors = int(params["topk"]), int(params["num_vectors"])
        dtype = "U8" if num_vectors < 1 << 8 else "I16" if num_vectors < 1 << 15 else "I32"
        indices = {
            f"{TOP}model.{name}_topk_indices": StoredTensor((*shape, topk), dtype)
            for name, shape in _mixtures(params, modules)
        }
        return indices | {f"{TOP}vblora_vector_bank": StoredTensor(_bank(params))}

    def num_trained(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> int:
        logits = sum(prod(shape) for _, shape in _mixtures(params, modules)) * int(params["num_vectors"])
        return logits + prod(_bank(params))


def _mixtures(params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the name of each layer's two sets of logits, and how many mixtures they are."""
    rank, length = int(params["rank"]), int(params["vector_length"])
    for module in modules:
        yield f"{module.name}.vblora_logits_A", (rank, module.in_features // length)
        yield f"{module.name}.vblora_logits_B", (module.out_features // length, rank)


def _bank(params: Mapping[str, Scalar]) -> tuple[int, int]:
    return int(params["num_vectors"]), int(params["vector_length"])
