"""Plain LoRA as a method: PEFT's own tuner, with rsLoRA, DoRA and PiSSA as its options. Read without torch or PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.errors import RankError, UsageError
from loraxs_search.methods._base import HeadPlan, PackedAdapter, PackedBase, PackedMethod, Sizes
from loraxs_search.methods._names import Shapes
from loraxs_search.methods._parameters import ParameterSpec, check_ranks
from loraxs_search.methods._peft import PeftMethod
from loraxs_search.records import Hyperparameters, LinearModule, Manifest, Scalar

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from loraxs_search.factors import FactorStore
    from loraxs_search.methods._plain_lora import PlainLora

_INITS: Mapping[str, bool | str] = {  # to PEFT's own words
    "default": True,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "pissa": "pissa",
}


class _PackedLora(PackedMethod):
    """Slots share the base alone; each has its own A and B."""

    def adapter(self, hyper: Hyperparameters, sizes: Sizes, device: torch.device) -> PackedAdapter:
        from loraxs_search.methods._lora_layers import PackedPairs

        return PackedPairs(Lora().config(hyper, {}), sizes, hyper.seed, device)

    def on(self, linears: Mapping[str, nn.Module], factors: FactorStore, num_workers: int) -> PackedBase:
        from loraxs_search.methods._lora_layers import LoraBase

        return LoraBase(linears, num_workers)


class Lora(PeftMethod):
    """delta_W = scale * B A, with A and B trained: r (in + out) numbers a layer. Trials share passes with LoRA-XS.

    alpha = scale * rank; rsLoRA multiplies by alpha / sqrt(r) in place of alpha / r.
    A and B start from the trial's seed alone, in float32 whatever the base is in. `init: pissa` starts from the largest
    singular values, and takes them out of the base for as long as the adapter is on it.
    """

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    symbol: ClassVar[str] = "A, B"
    description: ClassVar[str] = "A and B (trained, of low rank)"
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {
            "rank": ParameterSpec("int", low=1, high=65536, about="r, the rows of A and the columns of B."),
            "scale": ParameterSpec("float", above=True, default=1.0, about="Factor of the update, alpha / r."),
            "rslora": ParameterSpec(
                "flag", default=False, about="Multiplies by alpha / sqrt(r) instead, which is `scale` * sqrt(r)."
            ),
            "dora": ParameterSpec(
                "flag",
                default=False,
                about="Also trains the length of each row of the weight (DoRA). Such trials train alone.",
            ),
            "init": ParameterSpec(
                "name",
                names=tuple(_INITS),
                default="default",
                about="How A and B start: B at zero (`default`, `gaussian`), both drawn with a product of zero"
                " (`orthogonal`, even ranks), or the weight's largest singular values (`pissa`), which"
                " train alone.",
            ),
        }
    )
    not_offered: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"alpha": "is not offered, since with alpha fixed a larger rank learns slower; use `scale` (= alpha / rank)."}
    )
    sized_by: ClassVar[tuple[str, ...]] = ("rank", "dora")
    packed: ClassVar[PackedMethod | None] = _PackedLora()
    has_plain_lora: ClassVar[bool] = True

    # ---- resolution --------------------------------------------------------------------------------------------------
    def check(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> None:
        """Hold the rank against the smaller side of each layer: beyond it, more numbers give no other update.

        Raises:
            RankError: it is above one of them, or odd with `init: orthogonal`.
        """
        rank = int(params["rank"])
        check_ranks(rank, modules)
        if params.get("init") == "orthogonal" and rank % 2:
            raise RankError(
                f"`rank` must be even with `init: orthogonal`, but got rank={rank}.",
                hint="use even ranks, or another init",
            )

    def can_pack(self, params: Mapping[str, Scalar]) -> bool:
        """Whether the update is added to the base as it is: DoRA scales its weights, and PiSSA changes them."""
        return not params["dora"] and not _changes_base(params)

    def lora_rank(self, hyper: Hyperparameters) -> int:
        return super().lora_rank(hyper) * (2 if _changes_base(self.params(hyper)) else 1)

    def stored(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        rank, shapes = int(params["rank"]), dict[str, tuple[int, ...]]()
        for module in modules:
            shapes[f"{module.name}.lora_A.weight"] = (rank, module.in_features)
            shapes[f"{module.name}.lora_B.weight"] = (module.out_features, rank)
            if params.get("dora"):
                shapes[f"{module.name}.lora_magnitude_vector"] = (module.out_features,)
        return shapes

    # ---- work --------------------------------------------------------------------------------------------------------
    def plain_lora(self, model: PeftModel, manifest: Manifest) -> PlainLora:
        from loraxs_search.methods._lora_layers import as_plain_lora

        if self.params(manifest.hyperparameters)["dora"]:
            raise UsageError(
                "`--format lora` and gguf must be of an update that is added to the weights, but DoRA also scales"
                " them.",
                hint="use --format merged, or the adapter as it is: PEFT and vLLM load DoRA",
            )
        return as_plain_lora(model)

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> LoraConfig:
        from peft import LoraConfig

        params = self.params(hyper)
        rank = int(params["rank"])
        alpha = float(params["scale"]) * rank
        return LoraConfig(
            r=rank,
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,  # type: ignore[arg-type]  # any number will do
            use_rslora=bool(params["rslora"]),
            use_dora=bool(params["dora"]),
            init_lora_weights=_INITS[str(params["init"])],  # type: ignore[arg-type]
            **attachment,
        )

    def attach(
        self, model: PreTrainedModel, hyper: Hyperparameters, head: HeadPlan, factors: FactorStore | None
    ) -> PeftModel:
        from loraxs_search.methods import _lora_layers as lora

        if _changes_base(self.params(hyper)):
            with lora.own_weights(model, hyper.target_modules, factors):
                return super().attach(model, hyper, head, factors)
        adapted = super().attach(model, hyper, head, factors)
        lora.draw_pairs(adapted, hyper.seed)
        return adapted

    def detach(self, model: PeftModel | PreTrainedModel) -> PreTrainedModel:
        from loraxs_search.methods._lora_layers import restore_weights

        base = super().detach(model)
        restore_weights(base)
        return base

    def load(self, base: PreTrainedModel, folder: Path, device: str) -> PeftModel:
        from peft import PeftConfig

        from loraxs_search.methods._lora_layers import own_weights

        config = PeftConfig.from_pretrained(str(folder))
        names = config.target_modules if getattr(config, "init_lora_weights", True) == "pissa" else ()
        with own_weights(base, names, None):
            return super().load(base, folder, device).to(device)


def _changes_base(params: Mapping[str, Scalar]) -> bool:
    return params["init"] == "pissa"
