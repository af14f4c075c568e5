"""Plain LoRA, exactly, whatever method trained the update, for stock PEFT and vLLM's filesystem resolver.

Where the head reads a pool, for which LoRA's config has no place, it is a folder for sentence-transformers.

Its README.md says how with the task's labels: a config.json would have transformers look for the base beside it. The
tokenizer is there too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from loraxs_search.errors import UsageError
from loraxs_search.home import disk_faults, write_atomic
from loraxs_search.methods._base import Method
from loraxs_search.methods._peft import unloaded
from loraxs_search.methods.export._base import ExportFormat, ExportOptions, LoadedAdapter
from loraxs_search.methods.export._sentence_encoder import encoding_page, write_pooled_head
from loraxs_search.methods.names import FILES, ROOT
from loraxs_search.records.base import BaseModelRef
from loraxs_search.tasks.asking import asked_as_in_training, between_texts, finding_code, loading_code, where_base_is
from loraxs_search.tasks.kinds import kind_of

if TYPE_CHECKING:
    from loraxs_search.methods._base import PlainLora


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
    from safetensors.torch import save

    from loraxs_search.methods._lora_layers import padded

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


class PlainLoRAFolder(ExportFormat):
    """`--rank N` pads each layer to one rank, for a server that wants one for all adapters."""

    name: ClassVar[str] = "lora"
    options: ClassVar[frozenset[str]] = frozenset({"rank"})
    layout: ClassVar[int] = 6

    @classmethod
    def fits(cls, method: Method) -> bool:
        return method.has_plain_lora

    def write(self, adapter: LoadedAdapter, folder: Path, options: ExportOptions) -> None:
        from loraxs_search.base_model.locate import locate

        manifest, ref = adapter.manifest, adapter.manifest.base_model
        lora, revision = adapter.method.plain_lora(adapter.peft), locate(ref).revision or ref.revision
        # A name that means something on any machine: the hub's id and commit, or the folder's name.
        is_folder = Path(ref.id).is_absolute()
        base = BaseModelRef(Path(ref.id).name) if is_folder else replace(ref, revision=revision)
        if lora.pooling == "class":
            where = where_base_is(base)
            if is_folder:
                where = (
                    f"where `{base.id}` is the folder of the base: put its path in. Its weights must have the sha256"
                    f" {manifest.base_digest}"
                )
            page = f"""# {manifest.task.registered_name}

A {adapter.method.title} adapter for `{base.id}` as plain LoRA, exactly.

With transformers and PEFT, from this folder, {where}:

```python
import peft, transformers
{loading_code(kind_of(manifest.task), base)}
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
model = peft.PeftModel.from_pretrained(base, ".").eval()
```{between_texts(manifest.task)}
{asked_as_in_training(adapter.serving)}"""
        else:  # pool and head become modules of sentence-transformers
            placing = ""
            if base.package is not None or "/" not in base.id:  # the hub does not have it
                found = finding_code(base) or f'folder = "{base.id}"  # the path of the base\n'
                placing = f"""import json, pathlib
{found}config = pathlib.Path("adapter_config.json")
config.write_text(json.dumps(json.loads(config.read_text()) | {{"base_model_name_or_path": folder}}))
"""
            page = encoding_page(adapter, before=placing)
            model = unloaded(adapter.base, merge=True)
            write_pooled_head(model, adapter, folder)
            pairs = {name.removeprefix(f"{model.base_model_prefix}."): pair for name, pair in lora.pairs.items()}
            lora = replace(lora, pairs=pairs, others={}, saved=(), task_type="FEATURE_EXTRACTION", pooling="class")
        write_plain_lora(lora, folder, rank=options.rank, base=base.id, revision=base.revision)
        adapter.tokenizer.save_pretrained(str(folder))
        write_atomic(folder / "README.md", page)
