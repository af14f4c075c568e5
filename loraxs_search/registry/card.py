"""An adapter's model card, README.md, which is made from the manifest before it is sealed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from loraxs_search.errors import UsageError
from loraxs_search.manifest import Manifest
from loraxs_search.methods import method_of
from loraxs_search.registry.finalist import seed_statistics
from loraxs_search.tasks.asking import asking_code, asking_notes, base_code, loading_code, prompt_section
from loraxs_search.tasks.baselines import BASELINES
from loraxs_search.tasks.kinds import kind_of

_POOLS = {
    "cls": " The head reads the last hidden state of the first token.",
    "mean": " The head reads the mean of a text's last hidden states.",
    "last": " The head reads the last hidden state of the last token.",
}
# Beside metrics: shares of written answers, in which none was found, or that the bound on tokens ended; and how far
# probabilities are from the share of answers that are right.
_BESIDE = ("unparsed", "unended", "calibration_error")


def model_card(manifest: Manifest) -> str:
    """Return README.md of an adapter: what it does, how well, how big, where it came from, how to load it."""
    task, tuned, kind = manifest.task, manifest.hyperparameters, kind_of(manifest.task)
    method = method_of(tuned)
    params = method.params(tuned).items()
    own = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in params)
    pipeline = f"\npipeline_tag: {kind.hub_pipeline}" if kind.hub_pipeline else ""
    on_rows = [("this adapter", _number(manifest.test_metrics.get(task.metric)))]
    for one in manifest.baselines:
        title = f"the untouched base, {one.name}, asked in the same way" if one.is_untouched else one.name
        with contextlib.suppress(UsageError):  # it is not installed here
            title = BASELINES.get(one.name).title
        if one.answer is not None:
            title = f"always {kind.show(one.answer)}"
        on_rows.append((title, _number(one.test_metrics.get(task.metric))))
    sure = "\n".join(f"- {each}" for each in manifest.operating_points)
    slices = [(each.name.replace("|", "&#124;"), f"{each.num_rows:,}", _number(each.score)) for each in manifest.slices]
    chosen = (
        "Validation rows chose this adapter. The test rows took no part in that: it was scored on them once, alone."
    )
    if not manifest.test_metrics:
        chosen = "It was not scored on the test rows: those are for the one adapter that validation rows chose."
    searched = []
    if task.report_metric:
        searched.append(f"While they trained, trials were compared by `{task.report_metric}`.")
    if (step := manifest.kept_step) is not None:
        searched.append(f"This is the state of step {step} of {tuned.max_steps}, whose report was the best one.")
    start, source = manifest.start_from, task.source
    started = "" if start is None else f" It started from `{start['name']}` (content `{start['digest'][:16]}`)."
    names = sorted({f"`{path.rpartition('/')[2]}`" for path in source.data_files.values()})  # without their folders
    if source.hub:
        names = ["/".join(filter(None, (source.hub, source.config)))]
    names += [
        f"{'/'.join(filter(None, (it.hub, it.config)))} ({split})" for split, it in sorted(source.elsewhere.items())
    ]
    data = ", ".join(names) or "not named"
    seeds = "The recipe was trained from one seed only, so how much of the score is luck is not known."
    if refits := manifest.refits:
        trained = [refit for refit in refits if not refit.failed]
        scores = [f"{r.validation_metrics[task.metric]:.4f}" for r in trained if task.metric in r.validation_metrics]
        failed = f", {len(refits) - len(trained)} of them diverged" if len(trained) < len(refits) else ""
        seeds = (
            "Test is the score of this very adapter. Over seeds: mean and standard deviation with the same recipe "
            f"trained from {len(refits)} other seeds{failed} ({task.metric} {', '.join(scores) or 'none'})."
        )
    sections = [
        f"---\nbase_model: {manifest.base_model.id}\nlibrary_name: peft{pipeline}\ntags: [{tuned.method}]\n---",
        f"# {task.registered_name}",
        f"{method.title} adapter for `{manifest.base_model.id}`: {task.kind.replace('-', ' ')}"
        + (f" into {', '.join(task.labels)}." if task.labels else ".")
        + _POOLS.get(task.pooling, ""),
        "## Scores",
        _score_table(manifest),
        seeds,
        _table(("on the same test rows", task.metric), on_rows) if manifest.baselines else "",
        _table(("slice of the test rows", "rows", task.metric), slices) if slices else "",
        f"Where it is sure, as `loraxs-search predict {task.registered_name} --sure POINT` answers:\n\n{sure}"
        if sure
        else "",
        chosen,
        " ".join(searched),
        "" if kind.serving is None else f"## Prompt\n\n{prompt_section(replace(kind.serving, ends=manifest.ends))}",
        "## Size",
        _size_table(manifest),
        "## Load it",
        _loading(manifest),
        method.note,
        "## Origin",
        f"Trial `{manifest.trial_id}` of study `{manifest.study}`, {manifest.created_at}.\n"
        f"{len(tuned.target_modules)} modules{f' with {own}' if own else ''}, {tuned.max_steps} steps of "
        f"{tuned.batch_size} rows, seed {tuned.seed}.{started}",
        _table(("parameter", "value"), [(name, str(value)) for name, value in sorted(manifest.params.items())]),
        f"Data: {data}, fingerprint `{manifest.data_fingerprint[:16]}`. "
        f"Base weights: sha256 `{manifest.base_digest[:16]}`.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items())) + ".",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _score_table(manifest: Manifest) -> str:
    """Return each metric on test and validation rows, and over seeds."""
    names = [
        name
        for name in dict.fromkeys((*manifest.task.metrics, manifest.task.search_metric, *_BESIDE))
        if name in manifest.test_metrics or name in manifest.validation_metrics
    ]
    spreads = seed_statistics(manifest) if manifest.refits else {}
    rows = [
        (
            name,
            _number(manifest.test_metrics.get(name)),
            _number(manifest.validation_metrics.get(name)),
            str(spreads.get(name, "-")),
        )
        for name in names
    ]
    return _table(("metric", "test", "validation", "validation over seeds"), rows)


def _size_table(manifest: Manifest) -> str:
    """Return what is trained and stored, beside plain LoRA and the base."""
    size, lora_parameters = manifest.size, manifest.lora_parameters
    method = method_of(manifest.hyperparameters)
    has_head = kind_of(manifest.task).model.num_outputs is not None
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
    return _table(("part", "size"), rows.items())


def _loading(manifest: Manifest) -> str:
    base, task, kind = replace(manifest.base_model, sha256=manifest.base_digest), manifest.task, kind_of(manifest.task)
    method, name = method_of(manifest.hyperparameters), task.registered_name
    dtype = None if manifest.factors else "float32"  # factor files are of the checkpoint's type, and its head is kept
    predicting = asking = ""
    if kind.serving is not None:
        columns = ", ".join(json.dumps(f"<{column}>", ensure_ascii=False) for column in kind.question_texts)
        predicting = f'\nanswers = loraxs_search.predict("{name}", [{columns}])'
        code = asking_code(replace(kind.serving, ends=manifest.ends))
        asking = f"\n\nAsk it as in training:\n\n```python\n{code}\n```"
    own = f"""With this package, wherever the search found its base:

```python
import loraxs_search
model = loraxs_search.load_adapter("{name}")
tokenizer = loraxs_search.load_tokenizer("{name}"){predicting}
```"""
    if task.pooling != "class" and not method.says_pooling:
        return f"{own}{asking_notes(kind)}\n\nPEFT alone refuses it: its files cannot say what the head reads."
    plain = ""
    if method.has_plain_lora and task.pooling == "class":
        plain = f"\n\nAs plain LoRA, for vLLM and others: `loraxs-search pull {name} --format lora`"
        plain += ", and for llama.cpp and Ollama `--format gguf`." if kind.model.num_outputs is None else "."
    return f"""{own}

With transformers and PEFT, from this folder, {base_code(base).where}:

```python
import loraxs_search, peft, transformers
{loading_code(kind, base, dtype=dtype)}
tokenizer = transformers.AutoTokenizer.from_pretrained({base_code(base).arguments})
model = peft.PeftModel.from_pretrained(base, ".").eval()
```{asking_notes(kind)}{asking}{plain}"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def _number(value: float | None) -> str:
    """Return a score as tables have it."""
    return "-" if value is None else f"{value:.4f}"
