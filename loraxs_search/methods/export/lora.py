"""Plain LoRA, exactly, whatever method trained the update, for stock PEFT and vLLM's filesystem resolver.

Where the head reads a pool, for which LoRA's config has no place, it is a folder for sentence-transformers.

Its README.md says how with the task's labels: a config.json would have transformers look for the base beside it. The
tokenizer is there too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from loraxs_search.home import write_atomic
from loraxs_search.methods._base import Method
from loraxs_search.methods._peft import unloaded
from loraxs_search.methods.export._base import ExportFormat, ExportOptions, LoadedAdapter
from loraxs_search.methods.export._sentence_encoder import encoding_page, write_pooled_head
from loraxs_search.records import BaseModelRef, Manifest
from loraxs_search.tasks.asking import asked_as_in_training, between_texts, loading_code, where_base_is
from loraxs_search.tasks.kinds import kind_of

if TYPE_CHECKING:
    from loraxs_search.methods._plain_lora import PlainLora


class PlainLoRAFolder(ExportFormat):
    """`--rank N` pads each layer to one rank, for a server that wants one for all adapters."""

    name: ClassVar[str] = "lora"
    options: ClassVar[frozenset[str]] = frozenset({"rank"})
    layout: ClassVar[int] = 5

    @classmethod
    def fits(cls, method: Method) -> bool:
        return method.has_plain_lora

    def write(self, adapter: LoadedAdapter, folder: Path, options: ExportOptions) -> None:
        from loraxs_search.methods._plain_lora import write_plain_lora

        lora, base = adapter.plain_lora(), _loadable(adapter.manifest)
        page = _page(adapter, base) if lora.pooling == "class" else encoding_page(adapter)
        if lora.pooling != "class":
            lora = _with_pooled_head(adapter, lora, folder)
        write_plain_lora(lora, folder, rank=options.rank, base=base.id, revision=base.revision)
        adapter.tokenizer.save_pretrained(str(folder))
        write_atomic(folder / "README.md", page)


def _with_pooled_head(adapter: LoadedAdapter, lora: PlainLora, folder: Path) -> PlainLora:
    """Write pool and head as modules of sentence-transformers, and return the update of the body alone."""
    model = unloaded(adapter.peft, merge=True)
    write_pooled_head(model, adapter, folder)
    pairs = {name.removeprefix(f"{model.base_model_prefix}."): pair for name, pair in lora.pairs.items()}
    return replace(lora, pairs=pairs, others={}, saved=(), task_type="FEATURE_EXTRACTION", pooling="class")


def _loadable(manifest: Manifest) -> BaseModelRef:
    """Return an adapter's base as `from_pretrained` takes it: the hub's id and commit, or a folder here."""
    from loraxs_search import base_model

    located = base_model.locate(manifest.base_model)
    return BaseModelRef(located.id, located.revision) if located.revision else BaseModelRef(located.path)


def _page(adapter: LoadedAdapter, base: BaseModelRef) -> str:
    """Return README.md: how the plain LoRA adapter is loaded with its labels, for which PEFT's files have no place.

    Args:
        base: As `from_pretrained` takes it.
    """
    manifest = adapter.manifest
    where = where_base_is(base) if base.revision else _on_this_machine(manifest)
    return f"""# {manifest.task.registered_name}

A {adapter.method.title} adapter for `{manifest.base_model.id}` as plain LoRA, exactly.

With transformers and PEFT alone, from this folder, {where}:

```python
import peft, transformers
{loading_code(kind_of(manifest.task), base)}
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
model = peft.PeftModel.from_pretrained(base, ".").eval()
```{between_texts(manifest.task)}
{asked_as_in_training(adapter.serving)}"""


def _on_this_machine(manifest: Manifest) -> str:
    """Return where the code runs when it names a folder of this machine."""
    package = manifest.base_model.package
    carried = f", which the Python package `{package}` carries: the hub's may differ" if package else ""
    return (
        "where the folder of the base is that of this machine. Elsewhere, put its own in, also in adapter_config.json;"
        f" the adapter fits these weights alone{carried}"
    )
