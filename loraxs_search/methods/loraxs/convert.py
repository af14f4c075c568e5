"""An adapter as plain LoRA, for tools that know no LoRA-XS, and the names in `adapter_model.safetensors`.

The conversion is exact, since scale * B R A = (scale * B R) A.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from loraxs_search.errors import IntegrityError, UsageError, unknown_name
from loraxs_search.methods._names import ROOT, R
from loraxs_search.methods._plain_lora import Pair, PlainLora, write_plain_lora
from loraxs_search.methods.loraxs.config import PREFIX, LoraXSConfig
from loraxs_search.methods.loraxs.layer import LoraXSLayer


def export_lora(
    model: PeftModel,
    adapter_name: str,
    folder: Path,
    *,
    rank: int | None = None,
    base: str | None = None,
    revision: str | None = None,
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` of a plain LoRA adapter with the same logits.

    lora_A = A (r, in), lora_B = scale * B R (out, r), lora_alpha = r so that LoRA's own scaling is one; the head goes
    along under `modules_to_save`, layers that it leaves out as the identity. The size is that of LoRA: r (in + out)
    numbers per module.

    Args:
        rank: Rank of every module in the file, padded with zeros; None means each module's own.
        base: The base's name in the file, which servers compare with their own; None means where it was loaded from.
        revision: The base's revision in the file; with `base`.
    Raises:
        UsageError: the model has no LoRA-XS adapter of this name, one of a rank above `rank`, or one whose head reads a
            pool.
        HomeError: the folder cannot be written.
    """
    config = _config(model, adapter_name)
    if base is None:
        base, revision = config.base_model_name_or_path, config.revision
    write_plain_lora(as_plain_lora(model, adapter_name), folder, rank=rank, base=base, revision=revision)


def lora_pairs(model: PeftModel, adapter_name: str) -> dict[str, Pair]:
    """Return each adapted layer's update as LoRA factors A (r, in) and scale * B R (out, r), by full name."""
    return {name: layer.to_lora(adapter_name) for name, layer in _layers(model, adapter_name).items()}


def as_plain_lora(model: PeftModel, adapter_name: str) -> PlainLora:
    """Return the same function as LoRA.

    Raises:
        UsageError: the model has no LoRA-XS adapter of this name.
    """
    config = _config(model, adapter_name)
    # R is our only adapter parameter, so the rest is the head, under the keys that PEFT loads.
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    head = {k: v.detach().cpu().contiguous() for k, v in state.items() if f".{PREFIX}" not in k}
    return PlainLora(
        pairs=lora_pairs(model, adapter_name),
        others=head | _identities(model, config.pass_through),
        saved=[*(config.modules_to_save or ()), *config.pass_through],
        task_type=config.task_type,
        fan_in_fan_out=any(layer.fan_in_fan_out for layer in _layers(model, adapter_name).values()),
        pooling=config.pooling,
    )


def _config(model: PeftModel, adapter_name: str) -> LoraXSConfig:
    config = model.peft_config.get(adapter_name)
    if not isinstance(config, LoraXSConfig):
        known = [name for name, c in model.peft_config.items() if isinstance(c, LoraXSConfig)]
        raise UsageError(unknown_name("adapter_name", adapter_name, known))
    return config


def _layers(model: PeftModel, adapter_name: str) -> dict[str, LoraXSLayer]:
    return {
        name.removeprefix(ROOT): module
        for name, module in model.named_modules()
        if isinstance(module, LoraXSLayer) and adapter_name in module.settings
    }


def _identities(model: PeftModel, names: list[str]) -> dict[str, Tensor]:
    """Return the weights of head layers that were made the identity: plain PEFT would initialise them."""
    base = model.get_base_model()
    return {
        f"{ROOT}{name}.{key}": value.detach().cpu().clone()
        for name in names
        for key, value in base.get_submodule(name).state_dict().items()
    }


def split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tell R by module from head parameters by full name, PEFT's names taken off.

    Raises:
        IntegrityError: a name is not one that PEFT writes for LoRA-XS.
    """
    r, head = {}, {}
    for key, value in tensors.items():
        name = key.removeprefix(ROOT)
        if name == key:
            raise IntegrityError(f"Tensors of an adapter must be named {ROOT}..., but got {key!r}.")
        module, _, last = name.rpartition(".")
        if last == R:
            r[module] = value
        else:
            head[name] = value
    return r, head
