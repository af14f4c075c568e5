"""The model card of an adapter: README.md, made from its manifest before it is sealed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.methods import method_of
from loraxs_search.records import Baseline, Manifest, Scalar, Serving, Task
from loraxs_search.registry.finalist import seed_statistics
from loraxs_search.registry.manifest import MANIFEST, sealed, verify

if TYPE_CHECKING:
    from loraxs_search.tasks.kinds import TaskKind


_POOLS = {
    "cls": " The head reads the last hidden state of the first token.",
    "mean": " The head reads the mean of a text's last hidden states.",
    "last": " The head reads the last hidden state of the last token.",
}
_WRITTEN = ("unparsed", "unended")  # shares of written answers: none was found, or the bound on tokens ended it


def model_card(manifest: Manifest) -> str:
    """Return README.md of an adapter: what it does, how well, how big, where it came from, how to load it."""
    task, tuned = manifest.task, manifest.hyperparameters
    method = method_of(tuned)
    own = ", ".join(f"{name} {_short(value)}" for name, value in method.params(tuned).items())
    sections = [
        _front_matter(manifest),
        f"# {task.registered_name}",
        f"{method.title} adapter for `{manifest.base_model.id}`: {task.kind.replace('-', ' ')}"
        + (f" into {', '.join(task.labels)}." if task.labels else ".")
        + _POOLS.get(task.pooling, ""),
        "## Scores",
        score_table(manifest),
        _seeds(manifest),
        *_baseline_table(manifest),
        *_slice_table(manifest),
        _chosen(manifest),
        *_searched(manifest),
        *_samples(manifest),
        *_prompt(manifest),
        "## Size",
        size_table(manifest),
        "## Load it",
        _loading(manifest),
        *filter(None, [method.note]),
        "## Origin",
        f"Trial `{manifest.trial_id}` of study `{manifest.study}`, {manifest.created_at}.\n"
        f"{len(tuned.target_modules)} modules{f' with {own}' if own else ''}, {tuned.max_steps} steps of "
        f"{tuned.batch_size} rows, seed {tuned.seed}.{_started(manifest)}",
        table(("parameter", "value"), [(name, str(value)) for name, value in sorted(manifest.params.items())]),
        f"Data: {_data(task)}, fingerprint `{manifest.data_fingerprint[:16]}`. "
        f"Base weights: sha256 `{manifest.base_digest[:16]}`.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items())) + ".",
    ]
    return "\n\n".join(sections) + "\n"


def resealed(folder: Path, **changes: Any) -> dict[str, bytes]:
    """Return the files of a sealed adapter folder with other fields in its manifest, and a card that follows them.

    Raises:
        IntegrityError: the folder is not what its manifest says.
    """
    manifest = replace(verify(folder), **changes)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    return sealed(files | {"README.md": model_card(manifest).encode()}, manifest)


def _front_matter(manifest: Manifest) -> str:
    tag = _kind(manifest.task).hub_pipeline
    pipeline = [f"pipeline_tag: {tag}"] if tag else []
    tags = f"tags: [{manifest.hyperparameters.method}]"
    return "\n".join(["---", f"base_model: {manifest.base_model.id}", "library_name: peft", *pipeline, tags, "---"])


def score_table(manifest: Manifest) -> str:
    """Return each metric on test and validation rows, and over seeds."""
    names = [
        name
        for name in dict.fromkeys((*manifest.task.metrics, manifest.task.search_metric, *_WRITTEN))
        if name in manifest.test_metrics or name in manifest.validation_metrics
    ]
    spreads = seed_statistics(manifest) if manifest.refits else {}
    rows = [
        (
            name,
            number(manifest.test_metrics.get(name)),
            number(manifest.validation_metrics.get(name)),
            str(spreads.get(name, "-")),
        )
        for name in names
    ]
    return table(("metric", "test", "validation", "validation over seeds"), rows)


def _chosen(manifest: Manifest) -> str:
    if not manifest.test_metrics:
        return "It was not scored on the test rows: those are for the one adapter that validation rows chose."
    return "Validation rows chose this adapter. The test rows took no part in that: it was scored on them once, alone."


def _searched(manifest: Manifest) -> list[str]:
    """Return what trials were compared by, and which step was kept, where that is not as a matter of course."""
    task, step = manifest.task, manifest.kept_step
    compared = f"While they trained, trials were compared by `{task.report_metric}`." if task.report_metric else ""
    steps = manifest.hyperparameters.max_steps
    kept = f"This is the state of step {step} of {steps}, whose report was the best one." if step is not None else ""
    return [" ".join(filter(None, (compared, kept)))] if compared or kept else []


def _seeds(manifest: Manifest) -> str:
    refits = manifest.refits
    if not refits:
        return "The recipe was trained from one seed only, so how much of the score is luck is not known."
    metric, ok = manifest.task.metric, [refit for refit in refits if not refit.failed]
    scores = [f"{r.validation_metrics[metric]:.4f}" for r in ok if metric in r.validation_metrics]
    failed = f", {len(refits) - len(ok)} of them diverged" if len(ok) < len(refits) else ""
    return (
        f"Test is the score of this very adapter. Over seeds: mean and standard deviation with the same recipe trained "
        f"from {len(refits)} other seeds{failed} ({metric} {', '.join(scores) or 'none'})."
    )


def _baseline_table(manifest: Manifest) -> list[str]:
    """Return what simple models reach on the test rows, beside the adapter; nothing where that is not known."""
    metric = manifest.task.metric
    rows = [("this adapter", number(manifest.test_metrics.get(metric)))]
    rows += [(_describe(one, manifest.task), number(one.test_metrics.get(metric))) for one in manifest.baselines]
    return [table(("on the same test rows", metric), rows)] if manifest.baselines else []


def _slice_table(manifest: Manifest) -> list[str]:
    """Return the score on each slice of the test rows; nothing where the task has no slices."""
    rows = [(each.name.replace("|", "&#124;"), f"{each.num_rows:,}", number(each.score)) for each in manifest.slices]
    return [table(("slice of the test rows", "rows", manifest.task.metric), rows)] if rows else []


def _describe(baseline: Baseline, task: Task) -> str:
    from loraxs_search.tasks.baselines import baseline_title

    if baseline.answer is None:
        return baseline_title(baseline.name)
    return f"always {_kind(task).show(baseline.answer)}"


def size_table(manifest: Manifest) -> str:
    """Return what is trained and stored, beside plain LoRA and the base."""
    size, lora_parameters = manifest.size, manifest.lora_parameters
    method = method_of(manifest.hyperparameters)
    has_head = _kind(manifest.task).model.num_outputs is not None
    head = {"head": f"{size.head_parameters:,} parameters"} if has_head else {}
    rows = {
        method.description: f"{size.r_parameters:,} parameters",
        **head,
        f"stored, {method.symbol}{' and head' if has_head else ' alone'}": f"{size.stored_bytes:,} bytes",
    }
    if size.without_projection is not None:
        rows["learnt bytes, which no seed and no base gives back"] = f"{size.without_projection:,} bytes"
    if lora_parameters:
        smaller = lora_parameters / max(1, size.r_parameters)
        rank = manifest.hyperparameters.rank
        rows[f"plain LoRA at rank {rank}"] = f"{lora_parameters:,} parameters, {smaller:.0f} times {method.symbol}"
    if manifest.base_bytes:
        share = manifest.base_bytes / max(1, size.stored_bytes)
        rows["base model"] = f"{manifest.base_bytes:,} bytes, {share:,.0f} times what is stored"
    return table(("part", "size"), rows.items())


def _loading(manifest: Manifest) -> str:
    from loraxs_search.tasks.asking import base_argument, between_texts, loading_code, revision_argument, where_base_is

    base, kind = replace(manifest.base_model, sha256=manifest.base_digest), _kind(manifest.task)
    dtype = None if manifest.factors else "float32"  # factor files are of the checkpoint's type, and its head is kept
    own = f"""With this package, wherever the search found its base:

```python
import loraxs_search
model = loraxs_search.load_adapter("{manifest.task.registered_name}")
tokenizer = loraxs_search.load_tokenizer("{manifest.task.registered_name}"){_predicting(kind)}
```"""
    if manifest.task.pooling != "class" and not method_of(manifest.hyperparameters).says_pooling:
        return (
            f"{own}{between_texts(manifest.task)}\n\nPEFT alone refuses it: its files cannot say what the head reads."
        )
    return f"""{own}

With transformers and PEFT, from this folder, {where_base_is(base)}:

```python
import loraxs_search, peft, transformers
{loading_code(kind, base, dtype=dtype)}
tokenizer = transformers.AutoTokenizer.from_pretrained({base_argument(base)}{revision_argument(base)})
model = peft.PeftModel.from_pretrained(base, ".").eval()
```{between_texts(manifest.task)}{_asking(manifest)}{_vllm(manifest)}"""


def _samples(manifest: Manifest) -> list[str]:
    """Return test rows beside the adapter's answers; nothing where none were kept."""
    from loraxs_search.tasks.asking import fenced

    if not manifest.samples:
        return []
    rows = [
        f"Prompt:\n\n{fenced(sample.prompt)}\n\nReference:\n\n{fenced(sample.reference)}\n\n"
        f"Answer:\n\n{fenced(sample.answer)}"
        for sample in manifest.samples
    ]
    return ["## Answers", "The first test rows, with what this adapter makes of them.", "\n\n---\n\n".join(rows)]


def _serving(manifest: Manifest) -> Serving | None:
    serving = _kind(manifest.task).serving
    return serving and replace(serving, ends=manifest.ends)


def _prompt(manifest: Manifest) -> list[str]:
    """Return how the adapter was asked in training; nothing where it is not asked by a prompt."""
    from loraxs_search.tasks.asking import prompt_section

    serving = _serving(manifest)
    return [] if serving is None else ["## Prompt", prompt_section(serving)]


def _asking(manifest: Manifest) -> str:
    """Return code that asks as in training, without this package; nothing where no text is written."""
    from loraxs_search.tasks.asking import asking_code

    serving = _serving(manifest)
    return "" if serving is None else f"\n\nAsk it as in training:\n\n```python\n{asking_code(serving)}\n```"


def _predicting(kind: TaskKind) -> str:
    if kind.serving is None:
        return ""
    columns = ", ".join(json.dumps(f"<{name}>", ensure_ascii=False) for name in kind.question_texts)
    return f'\nanswers = loraxs_search.predict("{kind.task.registered_name}", [{columns}])'


def _vllm(manifest: Manifest) -> str:
    """Return how vLLM serves the adapter; nothing where it cannot be written as plain LoRA."""
    if not method_of(manifest.hyperparameters).has_plain_lora or manifest.task.pooling != "class":
        return ""
    ref, rank = manifest.base_model, _lora_rank(manifest)
    base, where = (ref.id, "") if ref.package is None else ("FOLDER", "; FOLDER is `folder` of the code above")
    has_head = _kind(manifest.task).model.num_outputs is not None
    own = "" if has_head else " --generation-config vllm"  # without the penalties of the base's own settings
    limits = "for a base that vLLM adapts; it does not take a trained head" if has_head else "for a base that it adapts"
    return f"""

With vLLM, as plain LoRA ({limits}{where}):

```console
loraxs-search pull {manifest.task.registered_name} --format lora --out adapters/{manifest.task.registered_name}
vllm serve {base} --enable-lora --max-lora-rank {rank}{own} \\
--lora-modules {manifest.task.registered_name}=adapters/{manifest.task.registered_name}
```{"" if has_head else _gguf(manifest)}"""


def _gguf(manifest: Manifest) -> str:
    return f"""

With llama.cpp and Ollama, as plain LoRA in a GGUF file; the folder's README.md says how:

```console
loraxs-search pull {manifest.task.registered_name} --format gguf --out adapters/{manifest.task.registered_name}-gguf
```"""


def _short(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _kind(task: Task) -> TaskKind:
    from loraxs_search.tasks.kinds import kind_of  # numpy, which reading a champion does without

    return kind_of(task)


def _lora_rank(manifest: Manifest) -> int:
    """Return the least rank of those that vLLM takes which holds the adapter."""
    own = method_of(manifest.hyperparameters).lora_rank(manifest.hyperparameters)
    return next((rank for rank in (8, 16, 32, 64, 128, 256, 320, 512) if rank >= own), 512)


def _data(task: Task) -> str:
    from loraxs_search.tasks.asking import source_names

    names = source_names(task.source)
    return ", ".join(names if task.source.hub else [f"`{name}`" for name in names]) or "not named"


def _started(manifest: Manifest) -> str:
    start = manifest.start_from
    return "" if start is None else f" It started from `{start.name}` (content `{start.digest[:16]}`)."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def number(value: float | None) -> str:
    """Return a score as tables have it."""
    return "-" if value is None else f"{value:.4f}"
