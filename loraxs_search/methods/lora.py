"""Plain LoRA as a method: PEFT's own tuner, with rsLoRA and DoRA as its options. Read without torch or PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.errors import UsageError
from loraxs_search.methods._base import HeadPlan, Modules, PackedAdapter, Params
from loraxs_search.methods._peft import PeftMethod
from loraxs_search.methods.names import ADAPTER, NO_ALPHA, Shapes, check_ranks
from loraxs_search.plugins import ParameterSpec
from loraxs_search.records.literals import Scalar
from loraxs_search.records.trial import Hyperparameters

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

    from loraxs_search.factors.store import FactorStore
    from loraxs_search.methods._base import Linears, Packing, PlainLora


class Lora(PeftMethod):
    """delta_W = scale * B A, with A and B trained: r (in + out) numbers a layer. Trials share passes with LoRA-XS.

    alpha = scale * rank; rsLoRA multiplies by alpha / sqrt(r) in place of alpha / r.
    A and B start from the trial's seed, in float32 whatever the base is in.
    """

    name: str = "lora"
    title: str = "LoRA"
    symbol: str = "A, B"
    description: str = "A and B (trained, of low rank)"
    parameters: Mapping[str, ParameterSpec] = MappingProxyType(
        {
            "rank": ParameterSpec("int", low=1, high=65536, about="r, the rows of A and the columns of B."),
            "scale": ParameterSpec("float", above=True, default=1.0, about="Factor of the update, alpha / r."),
            "rslora": ParameterSpec(
                "flag", default=False, about="Multiplies by alpha / sqrt(r) instead, which is `scale` * sqrt(r)."
            ),
            "dora": ParameterSpec(
                "flag",
                default=False,
                about="Also trains the length of each row of the weight (DoRA). Such trials train unpacked.",
            ),
        }
    )
    not_offered: Mapping[str, str] = NO_ALPHA
    sized_by: tuple[str, ...] = ("rank", "dora")
    packs: ClassVar[bool] = True
    has_plain_lora: ClassVar[bool] = True

    # ---- resolution --------------------------------------------------------------------------------------------------
    def recipe(self, params: Params) -> Mapping[str, Sequence[Scalar]]:
        """Measured at rank 4: "A recipe" in tests/benchmarks/README.md; at other ranks the rate is a guess."""
        return {
            "rank": (4,),
            "target_modules": ("all-linear",),
            "scale": (Hyperparameters.scale,),
            "learning_rate": (2.5e-3,),
            "head_learning_rate": (5.0e-3,),
        }

    def check(self, params: Params, modules: Modules) -> None:
        """Hold the rank against the smaller side of each layer: beyond it, more numbers give no other update.

        Raises:
            RankError: it is above one of them.
        """
        check_ranks(int(params["rank"]), modules)

    def can_pack(self, params: Params) -> bool:
        """Whether the update is added to the base as it is: DoRA scales its weights."""
        return not params["dora"]

    def stored(self, params: Params, modules: Modules) -> Shapes:
        rank, shapes = int(params["rank"]), dict[str, tuple[int, ...]]()
        for module in modules:
            shapes[f"{module.name}.lora_A.weight"] = (rank, module.in_features)
            shapes[f"{module.name}.lora_B.weight"] = (module.out_features, rank)
            if params.get("dora"):
                shapes[f"{module.name}.lora_magnitude_vector"] = (module.out_features,)
        return shapes

    # ---- work --------------------------------------------------------------------------------------------------------
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
            **attachment,
        )

    def attach(
        self, model: PreTrainedModel, hyper: Hyperparameters, head: HeadPlan, factors: FactorStore | None
    ) -> PeftModel:
        from loraxs_search.methods._lora_layers import draw_pairs

        adapted = super().attach(model, hyper, head, factors)
        draw_pairs(adapted, self.config(hyper, {}), hyper.seed)
        return adapted

    def plain_lora(self, model: PeftModel) -> PlainLora:
        from loraxs_search.methods._lora_layers import as_plain_lora, lora_layers, pair_of

        layers = lora_layers(model)
        if model.active_peft_config.use_dora:
            raise UsageError(
                "`--format lora` and gguf must be of an update that is added to the weights, but DoRA also scales"
                " them.",
                hint="use --format merged, or the adapter as it is: PEFT and vLLM load DoRA",
            )
        pairs = {name: pair_of(layer) for name, layer in layers.items()}
        return as_plain_lora(model, {name: (a, layers[name].scaling[ADAPTER] * b) for name, (a, b) in pairs.items()})

    def packed_adapter(
        self, hyper: Hyperparameters, linears: Linears, factors: FactorStore, device: torch.device
    ) -> PackedAdapter:
        from loraxs_search.base_model.layers import matrix
        from loraxs_search.methods._lora_layers import PackedPairs

        sizes = {name: (matrix(layer).shape[0], matrix(layer).shape[1]) for name, layer in linears.items()}
        return PackedPairs(self.config(hyper, {}), sizes, hyper.seed, device)

    def packed_updates(self, linears: Linears, factors: FactorStore, num_workers: int) -> Packing:
        from loraxs_search.methods._lora_layers import PackedLora

        return lambda slots: PackedLora(slots, linears, num_workers)
