"""Methods that PEFT builds from its config alone: what each declares, its config, and what its file holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.methods._names import PROJECTION_SEED, TOP, Shapes
from loraxs_search.methods._parameters import ParameterSpec
from loraxs_search.methods._peft import PeftMethod
from loraxs_search.records import Hyperparameters, LinearModule, Scalar

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

_RANK = ParameterSpec("int", low=1, high=65536, about="r, the inner dimension of each update.")
# The layers that take a feed-forward block's hidden states back, by their names in transformers' models.
_LAST_OF_BLOCK = re.compile(
    r"(^|\.)(output\.dense|down_proj|lin2|fc2|fc_out|wo|Wo|c_proj|dense_4h_to_h|w2|layer_2|ffn_output)$"
)


class VeRA(PeftMethod):
    """delta_W = diag(b) B diag(d) A, with B and A drawn once for all layers and the vectors b and d trained.

    Layers may differ in shape: A and B are as large as the largest, and each layer takes its part. b starts at zero,
    d at `d_initial`. Source: arXiv 2310.11454.
    """

    name: ClassVar[str] = "vera"
    title: ClassVar[str] = "VeRA"
    symbol: ClassVar[str] = "b, d"
    description: ClassVar[str] = "b and d (vectors beside one random projection)"
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {
            "rank": _RANK,
            "d_initial": ParameterSpec("float", above=True, default=0.1, about="Every number of d at the start."),
        }
    )
    sized_by: ClassVar[tuple[str, ...]] = ("rank",)
    projections: ClassVar[tuple[str, ...]] = ("vera_A", "vera_B")
    reads_weights: ClassVar[bool] = True  # their dtype, which PEFT rounds the projection to
    has_plain_lora: ClassVar[bool] = True

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> PeftConfig:
        from peft import VeraConfig

        own: Mapping[str, Any] = self.params(hyper)
        return VeraConfig(**attachment, r=own["rank"], d_initial=own["d_initial"], projection_prng_key=PROJECTION_SEED)

    def stored(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        rank = int(params["rank"])
        vectors = {f"{module.name}.vera_lambda_b": (module.out_features,) for module in modules}
        return vectors | {f"{module.name}.vera_lambda_d": (rank,) for module in modules}

    def stored_beside(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        rank = int(params["rank"])
        return {
            f"{TOP}vera_A": (rank, max(module.in_features for module in modules)),
            f"{TOP}vera_B": (max(module.out_features for module in modules), rank),
        }


class IA3(PeftMethod):
    """A vector scales what enters or what leaves each layer; it starts at one.

    Source: arXiv 2205.05638.
    """

    name: ClassVar[str] = "ia3"
    title: ClassVar[str] = "IA3"
    symbol: ClassVar[str] = "vectors"
    description: ClassVar[str] = "vectors that scale the base's layers"
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {
            "scaled": ParameterSpec(
                "name",
                names=("paper", "output", "input"),
                default="paper",
                about="What a vector scales: each layer's `output` or `input`. `paper` takes the input of a"
                " feed-forward block's last layer and the output of all others.",
            )
        }
    )
    sized_by: ClassVar[tuple[str, ...]] = ("scaled",)

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> PeftConfig:
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


class TinyLoRA(PeftMethod):
    """LoRA-XS whose R is a sum of fixed random matrices: delta_W = B (sum_i v_i P_i) A, with v alone trained.

    v starts at zero; a small layer's rank is its side. `num_groups` vectors are trained, each for layers that follow
    one another in the model; 0 is one for each layer. PEFT stores A, B and P, though the base's weights and a seed
    give them back. Source: arXiv 2602.04118.
    """

    name: ClassVar[str] = "tinylora"
    title: ClassVar[str] = "TinyLoRA"
    symbol: ClassVar[str] = "v"
    description: ClassVar[str] = "v (weights of fixed random matrices)"
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {
            "rank": _RANK,
            "vector_size": ParameterSpec("int", low=1, high=1 << 20, default=64, about="Numbers in a trained vector."),
            "num_groups": ParameterSpec(
                "int",
                high=65536,
                default=0,
                about="Number of vectors, each for layers that follow one another. 0 is one for each layer.",
            ),
        }
    )
    sized_by: ClassVar[tuple[str, ...]] = ("rank", "vector_size", "num_groups")
    projections: ClassVar[tuple[str, ...]] = ("tinylora_A", "tinylora_B", "tinylora_P")
    reads_weights: ClassVar[bool] = True
    has_plain_lora: ClassVar[bool] = True

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> PeftConfig:
        from peft import TinyLoraConfig

        own: Mapping[str, Any] = self.params(hyper)
        tying = 1.0 - _num_groups(own, hyper.target_modules) / len(hyper.target_modules)
        size = own["vector_size"]
        return TinyLoraConfig(**attachment, r=own["rank"], u=size, weight_tying=tying, projection_seed=PROJECTION_SEED)

    def frozen_cosines(self, model: PeftModel | PreTrainedModel) -> tuple[float, ...]:
        """Return sums over the singular vectors, which PEFT computes here, of their cosines with two fixed vectors."""
        found = dict(model.named_buffers())
        a = [value for name, value in found.items() if ".tinylora_A." in name]  # (r, in)
        b = [value.T for name, value in found.items() if ".tinylora_B." in name]  # (r, out)
        return tuple(cosine for vectors in (*a, *b) for cosine in _cosine_sums(vectors))

    def stored_beside(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        size = int(params["vector_size"])
        beside: dict[str, tuple[int, ...]] = {
            f"{TOP}tinylora_v.{group}": (size,) for group in range(_num_groups(params, modules))
        }
        for module in modules:
            rank, name = min(int(params["rank"]), module.smaller_side), f"{TOP}model.{module.name}.tinylora"
            beside |= {f"{name}_A": (rank, module.in_features), f"{name}_B": (module.out_features, rank)}
            beside[f"{name}_P"] = (size, rank, rank)
        return beside


class UniLoRA(PeftMethod):
    """Every entry of LoRA's matrices is one of the numbers of a single trained vector.

    A seed says which one, so the vector alone is stored. It is drawn from the trial's seed, uniformly within
    `init_bound` of zero. Source: arXiv 2506.00799.
    """

    name: ClassVar[str] = "unilora"
    title: ClassVar[str] = "Uni-LoRA"
    symbol: ClassVar[str] = "theta"
    description: ClassVar[str] = "theta (the one vector that all matrices are made of)"
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {
            "rank": _RANK,
            "vector_size": ParameterSpec(
                "int", low=1, high=1 << 24, default=256, about="Numbers in the trained vector."
            ),
            "init_bound": ParameterSpec(
                "float", above=True, default=0.02, about="The vector starts uniformly within this distance of zero."
            ),
        }
    )
    sized_by: ClassVar[tuple[str, ...]] = ("vector_size",)
    reads_weights: ClassVar[bool] = True  # their dtype, which PEFT rounds the entries' factors to
    has_plain_lora: ClassVar[bool] = True

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> PeftConfig:
        from peft import UniLoraConfig

        own: Mapping[str, Any] = self.params(hyper)
        size, bound = own["vector_size"], own["init_bound"]
        return UniLoraConfig(
            **attachment, r=own["rank"], theta_d_length=size, init_theta_d_bound=bound, proj_seed=PROJECTION_SEED
        )

    def stored_beside(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        return {f"{TOP}unilora_theta_d": (int(params["vector_size"]),)}


def _scales_input(scaled: Scalar, name: str) -> bool:
    is_last = bool(_LAST_OF_BLOCK.search(name)) and "attention" not in name and "attn" not in name
    return scaled == "input" or (scaled == "paper" and is_last)


def _cosine_sums(vectors: Tensor) -> Iterator[float]:
    """Yield sums over vectors (r, n) of cosines with two fixed vectors, as parts of the longest one's length.

    So those of singular values near zero, which are any and change nothing, do not count.
    """
    import torch

    rows = vectors.detach().to("cpu", torch.float64)
    rows = rows / rows.norm(dim=1).max().clamp_min(1e-30)
    for step in (1.0, 2.0**0.5):
        fixed = torch.cos(step * torch.arange(1, rows.shape[1] + 1, dtype=torch.float64))
        yield float((rows @ fixed).sum() / fixed.norm())


def _num_groups(params: Mapping[str, Scalar], modules: Sequence[LinearModule] | Sequence[str]) -> int:
    return min(int(params["num_groups"]) or len(modules), len(modules))
