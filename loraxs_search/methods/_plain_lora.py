"""A method's update as plain LoRA, and the folder that stock PEFT loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import pad

from loraxs_search.errors import UsageError
from loraxs_search.home import disk_faults, write_atomic
from loraxs_search.methods.names import ADAPTER, FILES, ROOT
from loraxs_search.records.literals import Pooling

if TYPE_CHECKING:  # not above: importing PEFT imports LoRA-XS, which imports this module
    from peft import PeftModel
    from transformers import PreTrainedModel


LayerT = TypeVar("LayerT")
Pair = tuple[Tensor, Tensor]  # A (r, in), B (out, r), float32; scales are multiplied into B


@dataclass(frozen=True)
class PlainLora:
    """An adapter as LoRA, whose own scaling is one.

    Args:
        pairs: Of each adapted layer, by full name.
        others: What else is stored, the head above all, under the keys that PEFT loads.
        saved: The modules that `others` belong to.
        fan_in_fan_out: Whether the layers keep their weights as (in, out).
        pooling: What the head reads of the base, for which LoRA's config has no place.
    """

    pairs: Mapping[str, Pair]
    others: Mapping[str, Tensor]
    saved: Sequence[str] = ()
    task_type: str | None = None
    fan_in_fan_out: bool = False
    pooling: Pooling = "class"


def write_plain_lora(
    lora: PlainLora, folder: Path, *, rank: int | None = None, base: str | None = None, revision: str | None = None
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    lora_alpha = r, so that LoRA's own scaling is one. The size is that of LoRA: r (in + out) numbers per module.

    Args:
        rank: Rank of every module in the file, padded with zeros; None means each module's own.
        base: The base's name in the file, which servers compare with their own.
        revision: The base's revision in the file; with `base`.
    Raises:
        UsageError: a module's rank is above `rank`, or the head reads a pool.
        HomeError: the folder cannot be written.
    """
    from peft import LoraConfig

    if lora.pooling != "class":  # LoRA's config cannot say it: whoever loads it would read something else
        raise UsageError(
            "A plain LoRA adapter must have a head that reads what the base's class does, but this one's reads"
            f" `pooling: {lora.pooling}`.",
            hint="`loraxs-search pull --format lora` makes a folder for sentence-transformers of it",
        )
    tensors = dict(lora.others)
    ranks: dict[str, int] = {}
    for name, pair in lora.pairs.items():
        lora_a, lora_b = padded(*pair, rank, name)
        ranks[name] = len(lora_a)
        tensors[f"{ROOT}{name}.lora_A.weight"] = lora_a.detach().cpu().contiguous()
        tensors[f"{ROOT}{name}.lora_B.weight"] = lora_b.detach().cpu().contiguous()
    write_atomic(folder / FILES[1], save(tensors, {"format": "pt"}))
    commonest = max(set(ranks.values()), key=lambda rank: (list(ranks.values()).count(rank), rank))
    own = {name: rank for name, rank in ranks.items() if rank != commonest}
    config = LoraConfig(
        r=commonest,
        lora_alpha=commonest,
        target_modules=sorted(ranks),
        rank_pattern=own,
        alpha_pattern=dict(own),
        fan_in_fan_out=lora.fan_in_fan_out,
        modules_to_save=list(dict.fromkeys(lora.saved)) or None,
        task_type=lora.task_type,
        inference_mode=True,
        base_model_name_or_path=base,
        revision=revision,
    )
    config.target_modules = sorted(ranks)  # PEFT makes a set of it, whose order is another in each process
    with disk_faults(folder):
        config.save_pretrained(str(folder))


def padded(a: Tensor, b: Tensor, rank: int | None, module: str) -> Pair:
    """Return A and B of the same update at a rank, with zeros; None means their own.

    Raises:
        UsageError: their own is above it.
    """
    own = a.shape[0]
    if rank is None or rank == own:
        return a, b
    if rank < own:
        raise UsageError(
            f"`rank` must be at least the adapter's own, but got rank={rank} where {module} has {own}.",
            hint=f"use --rank {own} or more",
        )
    return pad(a, (0, 0, 0, rank - own)), pad(b, (0, rank - own))


def as_plain_lora(model: PeftModel, pairs: Mapping[str, Pair]) -> PlainLora:
    """Return an adapter's function as LoRA, its trained head included.

    Args:
        pairs: The update of each adapted layer, by full name.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import get_peft_model_state_dict

    from loraxs_search.base_model.pooling import pooling_of

    config = model.active_peft_config
    saved = tuple(config.modules_to_save or ())
    state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    heads = tuple(f"{ROOT}{name}." for name in saved)
    return PlainLora(
        pairs=pairs,
        others={name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name.startswith(heads)},
        saved=saved,
        task_type=config.task_type,
        fan_in_fan_out=any(getattr(layer, "fan_in_fan_out", False) for _, layer in tuner_layers(model, BaseTunerLayer)),
        pooling=pooling_of(cast("PreTrainedModel", model.get_base_model())),
    )


def tuner_layers(model: PeftModel, kind: type[LayerT]) -> Iterator[tuple[str, LayerT]]:
    """Yield the layers of a kind that have an update, by full name in the base."""
    for name, layer in model.named_modules():
        if isinstance(layer, kind):
            yield name.removeprefix(ROOT), layer
