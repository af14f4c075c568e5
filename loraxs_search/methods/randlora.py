"""RandLoRA: a full-rank update, the sum of scaled products of fixed random bases. Source: arXiv 2502.00987.

Layers may differ in shape: the bases are as large as the largest, and each layer takes its part. A smaller `rank` means
more bases, and so more numbers that are trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.methods._base import HeadPlan
from loraxs_search.methods._names import ADAPTER, PROJECTION_SEED, ROOT, TOP, Shapes, StoredTensor
from loraxs_search.methods._parameter_spec import ParameterSpec
from loraxs_search.methods._peft import PeftMethod, peft_model
from loraxs_search.records import Hyperparameters, LinearModule, Scalar

if TYPE_CHECKING:
    from peft import PeftModel, RandLoraConfig
    from torch import Tensor
    from transformers import PreTrainedModel

    from loraxs_search.factors import FactorStore

_BASES = ("randlora_A", "randlora_B")


class RandLoRA(PeftMethod):
    """lambda starts at zero, so a fresh adapter changes nothing.

    PEFT draws its bases in the machine's own half precision, and stores them once more for every layer. Here they are
    drawn in float32, the same on every node, and stored once; PEFT loads that as well.
    """

    name: ClassVar[str] = "randlora"
    title: ClassVar[str] = "RandLoRA"
    symbol: ClassVar[str] = "scales"
    description: ClassVar[str] = "lambda and gamma (scales of fixed random bases)"
    note: ClassVar[str] = (
        "The file holds the random bases once, not once for each layer; PEFT alone warns of missing keys, and is right "
        "all the same, since its layers share them."
    )
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {
            "rank": ParameterSpec("int", low=1, high=65536),
            "scale": ParameterSpec("float", above=True, default=20.0),
        }
    )
    sized_by: ClassVar[tuple[str, ...]] = ("rank",)
    tuner: ClassVar[str] = "randlora"
    projections: ClassVar[tuple[str, ...]] = _BASES

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> RandLoraConfig:
        from peft import RandLoraConfig

        own: Mapping[str, Any] = self.params(hyper)
        rank, scale = own["rank"], own["scale"]
        return RandLoraConfig(**attachment, r=rank, randlora_alpha=rank * scale, projection_prng_key=PROJECTION_SEED)

    def attach(
        self, model: PreTrainedModel, hyper: Hyperparameters, head: HeadPlan, factors: FactorStore | None
    ) -> PeftModel:
        import torch

        adapted = super().attach(model, hyper, head, factors)
        draw = torch.Generator().manual_seed(PROJECTION_SEED)
        for name in _BASES:
            bases = getattr(adapted.base_model, name)  # one object for all layers
            drawn = torch.rand(bases[ADAPTER].shape, generator=draw) - 0.5
            bases[ADAPTER] = (drawn / drawn.std()).to(model.device)
        return adapted

    def stored(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        rank, shapes = int(params["rank"]), dict[str, tuple[int, ...]]()
        for module in modules:
            side = module.smaller_side
            shapes[f"{module.name}.randlora_lambda"] = (rank, _num_bases(side, rank))
            shapes[f"{module.name}.randlora_gamma"] = (_num_bases(side, rank), side)
        return shapes

    def stored_beside(
        self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]
    ) -> Mapping[str, StoredTensor]:
        rank = int(params["rank"])
        sides = [max(side(module) for module in modules) for side in (_inputs, _outputs)]
        return {
            f"{TOP}randlora_A": StoredTensor((rank, 1, min(sides))),
            f"{TOP}randlora_B": StoredTensor((max(sides), _num_bases(min(sides), rank), rank)),
        }

    def saved_state(self, model: PeftModel | PreTrainedModel) -> dict[str, Tensor]:
        state = peft_model(model).state_dict()
        return {name: value for name, value in state.items() if not _is_copy(name)}

    def load(self, base: PreTrainedModel, folder: Path, device: str) -> PeftModel:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Found missing adapter keys .*\.randlora_[AB]\.")
            return super().load(base, folder, device)


def _is_copy(name: str) -> bool:
    """Whether an entry of a state dict is what a layer shares with the whole model."""
    return name.startswith(ROOT) and name.endswith(tuple(f".{bases}.{ADAPTER}" for bases in _BASES))


def _num_bases(side: int, rank: int) -> int:
    """Return how many bases a layer has, for its update to be of full rank."""
    return -(-side // rank)


def _inputs(module: LinearModule) -> int:
    return module.in_features


def _outputs(module: LinearModule) -> int:
    return module.out_features
