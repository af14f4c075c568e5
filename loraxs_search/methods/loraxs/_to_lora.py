"""The same adapter as plain LoRA, for tools that know no LoRA-XS: exact, since scale * B R A = (scale * B R) A."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from peft import LoraConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import pad

from loraxs_search.errors import UsageError, unknown_name
from loraxs_search.home import disk_faults, write_atomic
from loraxs_search.methods._names import ADAPTER, ROOT
from loraxs_search.methods.loraxs._register import PREFIX
from loraxs_search.methods.loraxs.config import LoraXSConfig
from loraxs_search.methods.loraxs.layer import LoraXSLayer
from loraxs_search.records import Manifest
from loraxs_search.tasks import kind_of
from loraxs_search.tasks.asking import asked_as_in_training
from loraxs_search.tasks.base_code import where_base_is


def write_lora(model: PeftModel, manifest: Manifest, folder: Path, rank: int | None) -> None:
    """Write a registered adapter as plain LoRA, with a README.md that says how it is loaded; see `export_lora`."""
    base = manifest.base_model
    export_lora(model, ADAPTER, folder, rank=rank, base=base.id, revision=base.revision)
    write_atomic(folder / "README.md", _readme(manifest))


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
        UsageError: the model has no LoRA-XS adapter of this name, or one of a rank above `rank`.
        HomeError: the folder cannot be written.
    """
    config = model.peft_config.get(adapter_name)
    if not isinstance(config, LoraXSConfig):
        known = [name for name, c in model.peft_config.items() if isinstance(c, LoraXSConfig)]
        raise UsageError(unknown_name("adapter_name", adapter_name, known))
    layers = _layers(model, adapter_name)
    # R is our only adapter parameter, so the rest is the head, under the keys that PEFT loads.
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    tensors: dict[str, Tensor] = {k: v.detach().cpu().contiguous() for k, v in state.items() if f".{PREFIX}" not in k}
    tensors |= _identities(model, config.pass_through)
    for name, layer in layers.items():
        lora_a, lora_b = _padded(*layer.to_lora(adapter_name), rank, name)
        tensors[f"{ROOT}{name}.lora_A.weight"] = lora_a.cpu().contiguous()
        tensors[f"{ROOT}{name}.lora_B.weight"] = lora_b.cpu().contiguous()
    write_atomic(folder / SAFETENSORS_WEIGHTS_NAME, save(tensors, {"format": "pt"}))
    with disk_faults(folder):
        lora = _lora_config(config, layers, adapter_name, rank)
        if base is not None:
            lora.base_model_name_or_path, lora.revision = base, revision
        lora.save_pretrained(str(folder))


def lora_pairs(model: PeftModel, adapter_name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return each adapted layer's update as LoRA factors A (r, in) and scale * B R (out, r), by full name."""
    return {name: layer.to_lora(adapter_name) for name, layer in _layers(model, adapter_name).items()}


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


def _padded(a: Tensor, b: Tensor, rank: int | None, module: str) -> tuple[Tensor, Tensor]:
    own = a.shape[0]
    if rank is None or rank == own:
        return a, b
    if rank < own:
        raise UsageError(
            f"`rank` must be at least the adapter's own, but got rank={rank} where {module} has {own}.",
            hint=f"use --rank {own} or more",
        )
    return pad(a, (0, 0, 0, rank - own)), pad(b, (0, rank - own))


def _lora_config(
    config: LoraXSConfig, layers: dict[str, LoraXSLayer], adapter_name: str, rank: int | None
) -> LoraConfig:
    ranks = {name: rank or layer.settings[adapter_name].rank for name, layer in layers.items()}
    r = rank or config.r
    own = {name: module_rank for name, module_rank in ranks.items() if module_rank != r}
    saved = list(dict.fromkeys([*(config.modules_to_save or ()), *config.pass_through])) or None
    return LoraConfig(
        r=r,
        lora_alpha=r,
        target_modules=sorted(ranks),
        rank_pattern=own,
        alpha_pattern=dict(own),
        fan_in_fan_out=any(layer.fan_in_fan_out for layer in layers.values()),
        modules_to_save=saved,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )


def _readme(manifest: Manifest) -> str:
    """Return how the plain LoRA adapter is loaded with its labels: PEFT's files have no place for them."""
    base, kind = replace(manifest.base_model, sha256=manifest.base_digest), kind_of(manifest.task)
    return f"""# {manifest.task.name}

A LoRA-XS adapter for `{base.id}` as plain LoRA, exactly.

With transformers and PEFT, from this folder, {where_base_is(base)}:

```python
import peft, transformers
{kind.loading_code(base)}
model = peft.PeftModel.from_pretrained(base, ".").eval()
```
{asked_as_in_training(kind.serving, base)}"""
