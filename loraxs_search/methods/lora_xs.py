"""LoRA-XS: delta_W = scale * B R A, with A and B from the base weight's SVD and R (r, r) trained.

What it means to a search; the PEFT tuner that computes it is `methods/loraxs/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args

from loraxs_search.errors import RankError
from loraxs_search.methods._base import (
    Conversion,
    FactorRequest,
    FactorSet,
    HeadPlan,
    PackedAdapter,
    PackedBase,
    PackedMethod,
    Possible,
    Sizes,
)
from loraxs_search.methods._names import ADAPTER, BYTES_PER_PARAMETER, R, Shapes
from loraxs_search.methods._parameter_spec import ParameterSpec
from loraxs_search.methods._peft import PeftMethod, merge, peft_model
from loraxs_search.records import Basis, Hyperparameters, LinearModule, Manifest, Scalar, Sigma

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

    from loraxs_search.factors import FactorStore
    from loraxs_search.methods.loraxs import LoraXSConfig

_SMALLEST_FACTOR_RANK = 64


def as_lora(model: PeftModel | PreTrainedModel, manifest: Manifest, folder: Path, rank: int | None) -> None:
    """Write the same function as plain LoRA, exactly, with a README.md that says how it is loaded."""
    from loraxs_search.methods._plain_lora import write_readme
    from loraxs_search.methods.loraxs import export_lora

    base = manifest.base_model
    export_lora(peft_model(model), ADAPTER, folder, rank=rank, base=base.id, revision=base.revision)
    write_readme(manifest, LoraXS.title, folder)


def as_gguf(model: PeftModel | PreTrainedModel, manifest: Manifest, folder: Path, _: int | None) -> None:
    """Write the same function as plain LoRA for llama.cpp, exactly, with what Ollama needs to ask as in training.

    Raises:
        UsageError: it has a head, or llama.cpp has no such layers.
    """
    from loraxs_search.methods.gguf_lora import FILE, check_headless, write_gguf_lora
    from loraxs_search.methods.loraxs import lora_pairs
    from loraxs_search.methods.ollama import write_modelfile

    check_headless(manifest)
    adapted = peft_model(model)
    config = cast("PreTrainedModel", adapted.get_base_model()).config
    write_gguf_lora(lora_pairs(adapted, ADAPTER), config, folder / FILE, base=manifest.base_model.id)
    write_modelfile(manifest, LoraXS.title, folder)


class _PackedLoraXS(PackedMethod):
    """Slots share A and B; each has its own R."""

    def adapter(self, hyper: Hyperparameters, sizes: Sizes, device: torch.device) -> PackedAdapter:
        from loraxs_search.methods.loraxs import PackedR

        return PackedR(_config(hyper), sizes, device)

    def on(self, linears: Mapping[str, nn.Module], factors: FactorStore, num_workers: int) -> PackedBase:
        from loraxs_search.methods.loraxs.packed import PackedLinears

        return PackedLinears(linears, factors, num_workers)


class LoraXS(PeftMethod):
    """R starts at N(0, init_std^2) from the trial's seed and each module's name; A and B come from the factor store."""

    name: ClassVar[str] = "lora-xs"
    title: ClassVar[str] = "LoRA-XS"
    symbol: ClassVar[str] = "R"
    description: ClassVar[str] = "R (trained between frozen factors)"
    note: ClassVar[str] = (
        "The matrices R mean something only between the factors of this very base model: loading checks that."
    )
    parameters: ClassVar[Mapping[str, ParameterSpec]] = MappingProxyType(
        {
            "rank": ParameterSpec("int", low=1, high=65536),
            "scale": ParameterSpec("float", above=True, default=Hyperparameters.scale),
            "sigma": ParameterSpec("name", names=get_args(Sigma), default=Hyperparameters.sigma),
            "basis": ParameterSpec("name", names=get_args(Basis), default=Hyperparameters.basis),
            "init_std": ParameterSpec("float", default=Hyperparameters.init_std),
        }
    )
    not_offered: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"alpha": "is not offered, since with alpha fixed a larger rank learns slower; use `scale` (= alpha / rank)."}
    )
    sized_by: ClassVar[tuple[str, ...]] = ("rank",)
    packed: ClassVar[PackedMethod | None] = _PackedLoraXS()
    conversions: ClassVar[Mapping[str, Conversion]] = MappingProxyType(
        {"lora": as_lora, "merged": merge, "gguf": as_gguf}
    )

    # ---- resolution --------------------------------------------------------------------------------------------------
    def fields(self, params: Mapping[str, Scalar], possible: Possible) -> Mapping[str, Any]:
        return {**params, "factor_rank": factor_rank_bucket(_max_rank(possible))}

    def params(self, hyper: Hyperparameters) -> Mapping[str, Scalar]:
        return {name: getattr(hyper, name) for name in self.parameters}

    def check(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> None:
        """Hold the rank against the smaller side of each layer.

        Raises:
            RankError: it is above one of them; the message names the smallest.
        """
        rank = int(params["rank"])
        smallest = min(modules, key=_smaller_side)
        if not 1 <= rank <= _smaller_side(smallest):
            raise RankError(
                f"`rank` must be in 1..{_smaller_side(smallest)}, but got rank={rank} for {smallest.name}.",
                hint="lower the rank, or leave this module out of target_modules",
            )

    def slot_bytes(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule], num_workers: int) -> int:
        # R with its gradient and two moments; in the pack C, what R is multiplied with, and gradients for each worker.
        return BYTES_PER_PARAMETER * self.size(params, modules, {}, {}).r_parameters * (4 + 2 + num_workers)

    def factor_sets(self, possible: Possible) -> tuple[FactorSet, ...]:
        rank = factor_rank_bucket(_max_rank(possible))
        return tuple(FactorSet(cast("Basis", basis), rank) for basis in possible["basis"] or ())

    def stored(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        rank = int(params["rank"])
        return {f"{module.name}.{R}": (rank, rank) for module in modules}

    def stored_identity(self, identity: Shapes) -> Shapes:
        return {}  # their names are in the config

    # ---- work --------------------------------------------------------------------------------------------------------
    def factors(self, hyper: Hyperparameters, sizes: Sizes) -> Iterator[FactorRequest]:
        from loraxs_search.methods.loraxs import module_settings

        config = _config(hyper)
        for name, size in sizes.items():
            settings = module_settings(config, name, *size)
            yield FactorRequest(name, settings.factor_rank, settings.basis, settings.driver)

    def attachment(self, hyper: Hyperparameters, head: HeadPlan) -> dict[str, Any]:
        own = {"modules_to_save": list(head.trained), "pass_through": list(head.identity)}
        return super().attachment(hyper, head) | own

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> LoraXSConfig:
        return _config(hyper, **attachment)

    def attach(
        self, model: PreTrainedModel, hyper: Hyperparameters, head: HeadPlan, factors: FactorStore | None
    ) -> PeftModel:
        from loraxs_search.methods.loraxs import current_factor_store, use_factor_store

        with use_factor_store(current_factor_store() if factors is None else factors):
            return super().attach(model, hyper, head, factors)

    def files(self, model: PeftModel | PreTrainedModel, body_fingerprint: Sequence[float]) -> dict[str, bytes]:
        peft_model(model).active_peft_config.body_fingerprint = list(body_fingerprint)
        return super().files(model, body_fingerprint)


def factor_rank_bucket(max_rank: int) -> int:
    """Return the rank at which factors are computed and stored: a power of two, at least 64, so that spaces share them.

    It may be above a small module's side; the factors of that module then end at its side.
    """
    return max(_SMALLEST_FACTOR_RANK, 1 << (max_rank - 1).bit_length())


def _config(hyper: Hyperparameters, **attachment: Any) -> LoraXSConfig:
    from loraxs_search.methods.loraxs import LoraXSConfig

    return LoraXSConfig(
        r=hyper.rank,
        scale=hyper.scale,
        sigma=hyper.sigma,
        basis=hyper.basis,
        factor_rank=hyper.factor_rank,
        init_std=hyper.init_std,
        init_seed=hyper.seed,
        **attachment,
    )


def _max_rank(possible: Possible) -> int:
    return max(int(rank) for rank in possible["rank"] or ())


def _smaller_side(module: LinearModule) -> int:
    return min(module.in_features, module.out_features)
