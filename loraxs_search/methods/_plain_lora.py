"""A folder that stock PEFT loads as plain LoRA, whatever method trained the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import pad

from loraxs_search.errors import UsageError
from loraxs_search.home import disk_faults, write_atomic
from loraxs_search.methods._names import FILES, ROOT
from loraxs_search.records import BaseModelRef, Manifest, Serving
from loraxs_search.tasks import kind_of
from loraxs_search.tasks.asking import asked_as_in_training, between_texts, loading_code, where_base_is

if TYPE_CHECKING:
    from peft import LoraConfig

Pair = tuple[Tensor, Tensor]  # A (r, in), B (out, r), float32; scales are multiplied into B


@dataclass(frozen=True)
class PlainLora:
    """An adapter as LoRA, whose own scaling is one.

    Args:
        pairs: Of each adapted layer, by full name.
        others: What else is stored, the head above all, under the keys that PEFT loads.
        saved: The modules that `others` belong to.
        fan_in_fan_out: Whether the layers keep their weights as (in, out).
    """

    pairs: Mapping[str, Pair]
    others: Mapping[str, Tensor]
    saved: Sequence[str] = ()
    task_type: str | None = None
    fan_in_fan_out: bool = False


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
        UsageError: a module's rank is above `rank`.
        HomeError: the folder cannot be written.
    """
    tensors = dict(lora.others)
    ranks: dict[str, int] = {}
    for name, pair in lora.pairs.items():
        lora_a, lora_b = padded(*pair, rank, name)
        ranks[name] = len(lora_a)
        tensors[f"{ROOT}{name}.lora_A.weight"] = lora_a.detach().cpu().contiguous()
        tensors[f"{ROOT}{name}.lora_B.weight"] = lora_b.detach().cpu().contiguous()
    write_atomic(folder / FILES[1], save(tensors, {"format": "pt"}))
    with disk_faults(folder):
        config = _config(lora, ranks)
        config.base_model_name_or_path, config.revision = base, revision
        config.save_pretrained(str(folder))


def write_readme(manifest: Manifest, base: BaseModelRef, title: str, folder: Path, serving: Serving | None) -> None:
    """Write README.md: how the plain LoRA adapter is loaded with its labels, for which PEFT's files have no place.

    Args:
        base: As `from_pretrained` takes it.
        title: Of the method that trained it.
        serving: How it is asked; None where it writes no text.
    """
    where = where_base_is(base) if base.revision else _on_this_machine(manifest)
    page = f"""# {manifest.task.name}

A {title} adapter for `{manifest.base_model.id}` as plain LoRA, exactly.

With transformers and PEFT alone, from this folder, {where}:

```python
import peft, transformers
{loading_code(kind_of(manifest.task), base)}
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
model = peft.PeftModel.from_pretrained(base, ".").eval()
```{between_texts(manifest.task)}
{asked_as_in_training(serving)}"""
    write_atomic(folder / "README.md", page)


def _on_this_machine(manifest: Manifest) -> str:
    """Return where the code runs when it names a folder of this machine."""
    package = manifest.base_model.package
    carried = f", which the Python package `{package}` carries: the hub's may differ" if package else ""
    return (
        "where the folder of the base is that of this machine. Elsewhere, put its own in, also in adapter_config.json;"
        f" the adapter fits these weights alone{carried}"
    )


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


def _config(lora: PlainLora, ranks: Mapping[str, int]) -> LoraConfig:
    """Return the config of modules of these ranks; the commonest stands for those that are not named."""
    from peft import LoraConfig  # not above: importing PEFT imports LoRA-XS, which imports this module

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
    )
    config.target_modules = sorted(ranks)  # PEFT makes a set of it, whose order is another in each process
    return config
