"""An adapter folder in another form: plain LoRA for servers that know no LoRA-XS, or a whole model."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Literal

from peft import PeftModel

from loraxs_search import base_model
from loraxs_search.errors import UsageError
from loraxs_search.home import alone, disk_faults, write_atomic
from loraxs_search.methods.loraxs._to_lora import export_lora
from loraxs_search.methods.loraxs.loading import load_adapter_folder, read_manifest
from loraxs_search.records import Manifest

Form = Literal["lora", "merged"]


def converted(folder: Path, form: Form, *, rank: int | None = None) -> Path:
    """Return an adapter in another form, made once and kept beside `folder`; it appears whole, changed files anew.

    `lora` is the same function as plain LoRA, exactly: stock PEFT loads it, and vLLM's filesystem resolver takes it.
    Its README.md says how with the task's labels: a config.json would have transformers look for the base beside it.
    `merged` is the base with the update added to its weights, with its tokenizer: plain transformers load it.

    Args:
        folder: A verified adapter folder.
        rank: Rank that `lora` is padded to, where a server wants one for all; None means the adapter's own.
    Raises:
        UsageError: `rank` is below the adapter's own, or given with `merged`.
        BaseModelError, FactorMismatchError: the adapter cannot be loaded here.
    """
    if rank is not None and form != "lora":
        raise UsageError(f"`--rank` must go with --format lora, but got {form!r}.")
    target = folder.with_name(f"{folder.name}.{form}" + (f"-r{rank}" if rank is not None else ""))
    note = target.with_name(f"{target.name}.json")
    if _is_whole(target, note):
        return target
    building = target.with_name(f".{target.name}")
    with disk_faults(target), alone(building):
        if _is_whole(target, note):  # another one was quicker
            return target
        shutil.rmtree(building, ignore_errors=True)  # of one that was killed
        building.mkdir()
        try:
            _write(folder, form, rank, building)
            write_atomic(note, json.dumps(_digests(building), indent=1))
            shutil.rmtree(target, ignore_errors=True)
            building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return target


def _write(adapter: Path, form: Form, rank: int | None, folder: Path) -> None:
    manifest, model = read_manifest(adapter), load_adapter_folder(adapter)
    if form == "lora":
        base = manifest.base_model
        export_lora(model, "default", folder, rank=rank, base=base.id, revision=base.revision)
        write_atomic(folder / "README.md", _readme(manifest))
    else:
        _save_merged(model, manifest, folder)


def _readme(manifest: Manifest) -> str:
    """Return how the plain LoRA adapter is loaded with its labels: PEFT's files have no place for them."""
    base, labels = manifest.base_model, json.dumps(manifest.task.labels, ensure_ascii=False)
    names = "id2label=dict(enumerate(labels)), label2id={label: number for number, label in enumerate(labels)}"
    setup, head = (f"labels = {labels}\n", names) if manifest.task.labels else ("", "num_labels=1")
    revision = f', revision="{base.revision}"' if base.revision else ""
    load = f'transformers.AutoModelForSequenceClassification.from_pretrained("{base.id}", {head}{revision})'
    return f"""# {manifest.task.name}

A LoRA-XS adapter for `{base.id}` as plain LoRA, exactly.

With transformers and PEFT, from this folder, where the hub or its cache has the base:

```python
import peft, transformers
{setup}base = {load}
model = peft.PeftModel.from_pretrained(base, ".").eval()
```
"""


def _save_merged(model: PeftModel, manifest: Manifest, folder: Path) -> None:
    merged = model.merge_and_unload()
    with base_model.quiet():  # of a progress bar
        merged.save_pretrained(str(folder))
    base_model.load_tokenizer(base_model.locate(manifest.base_model)).save_pretrained(str(folder))


def _is_whole(folder: Path, note: Path) -> bool:
    try:
        return bool(json.loads(note.read_bytes()) == _digests(folder))
    except (OSError, ValueError):  # one of them is not there or damaged
        return False


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
