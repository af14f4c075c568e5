"""The model card of an adapter: README.md, made from its manifest before it is sealed."""

from __future__ import annotations

from collections.abc import Mapping

from loraxs_search.records import DataSource, Manifest


def model_card(manifest: Manifest, *, lora_parameters: int | None = None) -> str:
    """Return README.md of an adapter: what it does, how well, how big, where it came from, how to load it.

    Args:
        lora_parameters: What plain LoRA would train on the same modules at the same rank: the sum of r (in + out).
    """
    task, tuned = manifest.task, manifest.hyperparameters
    sections = [
        _front_matter(manifest),
        f"# {task.name}",
        f"A LoRA-XS adapter for `{manifest.base_model.id}`: {task.kind.replace('-', ' ')}"
        + (f" into {', '.join(task.labels)}." if task.labels else "."),
        "## Scores",
        _scores(manifest),
        "Trials were chosen by the validation score; the test rows took no part in the search.",
        "## Size",
        _size(manifest, lora_parameters),
        "## Load it",
        _loading(manifest),
        "The matrices R mean something only between the factors of this very base model: loading checks that.",
        "## Origin",
        f"Trial `{manifest.trial_id}` of study `{manifest.study}`, {manifest.created_at}.\n"
        f"Rank {tuned.rank}, scale {tuned.scale:g}, {len(tuned.target_modules)} modules, {tuned.max_steps} steps of "
        f"{tuned.batch_size} rows, seed {tuned.seed}.",
        _table(("parameter", "value"), {name: str(value) for name, value in sorted(manifest.params.items())}),
        f"Data: {_data(task.source)}, fingerprint `{manifest.data_fingerprint[:16]}`. "
        f"Base weights: sha256 `{manifest.base_digest[:16]}`.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items())) + ".",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(manifest: Manifest) -> str:
    pipeline = ["pipeline_tag: text-classification"] if manifest.task.kind == "sequence-classification" else []
    lines = ["---", f"base_model: {manifest.base_model.id}", "library_name: peft", *pipeline, "tags: [lora-xs]", "---"]
    return "\n".join(lines)


def _scores(manifest: Manifest) -> str:
    names = [
        name for name in manifest.task.metrics if name in manifest.test_metrics or name in manifest.validation_metrics
    ]
    rows = ["| metric | test | validation |", "|---|---|---|"]
    rows += [
        f"| {name} | {_number(manifest.test_metrics, name)} | {_number(manifest.validation_metrics, name)} |"
        for name in names
    ]
    return "\n".join(rows)


def _size(manifest: Manifest, lora_parameters: int | None) -> str:
    size = manifest.size
    rows = {
        "R (trained between frozen factors)": f"{size.r_parameters:,} parameters",
        "head": f"{size.head_parameters:,} parameters",
        "stored, R and head": f"{size.stored_bytes:,} bytes",
    }
    if lora_parameters:
        smaller = lora_parameters / max(1, size.r_parameters)
        rank = manifest.hyperparameters.rank
        rows[f"plain LoRA at rank {rank}"] = f"{lora_parameters:,} parameters, {smaller:.0f} times R"
    return _table(("part", "size"), rows)


def _loading(manifest: Manifest) -> str:
    base, labels = manifest.base_model, max(1, len(manifest.task.labels))
    revision = f', revision="{base.revision}"' if base.revision else ""
    return f"""With this package:

```python
import loraxs_search
model = loraxs_search.load_adapter("{manifest.task.name}")
```

With transformers and PEFT, from this folder:

```python
import loraxs_search, peft, transformers
base = transformers.AutoModelForSequenceClassification.from_pretrained("{base.id}", num_labels={labels}{revision})
tokenizer = transformers.AutoTokenizer.from_pretrained("{base.id}"{revision})
model = peft.PeftModel.from_pretrained(base, ".").eval()
```"""


def _data(source: DataSource) -> str:
    if source.hub:
        return "/".join(filter(None, (source.hub, source.config)))
    names = sorted({path.rpartition("/")[2] for path in source.data_files.values()})
    return ", ".join(f"`{name}`" for name in names) or "not named"


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    return "\n".join(
        [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    )


def _number(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.4f}" if name in metrics else "-"
