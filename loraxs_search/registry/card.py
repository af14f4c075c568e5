"""What people read of an adapter, in Markdown: its model card, README.md, and MLflow's page of a version.

The card is made from the manifest before it is sealed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraxs_search.methods import method_of
from loraxs_search.records.adapter import Manifest
from loraxs_search.records.promotion import Candidate, Decision
from loraxs_search.records.task import DataSource
from loraxs_search.registry.finalist import seed_statistics, show_confidence
from loraxs_search.registry.manifest import MANIFEST, sealed, verify
from loraxs_search.tasks.asking import asking_code, base_code, between_texts, fenced, loading_code, prompt_section
from loraxs_search.tasks.baselines import baseline_title
from loraxs_search.tasks.kinds import kind_of

_POOLS = {
    "cls": " The head reads the last hidden state of the first token.",
    "mean": " The head reads the mean of a text's last hidden states.",
    "last": " The head reads the last hidden state of the last token.",
}
_WRITTEN = ("unparsed", "unended")  # shares of written answers: none was found, or the bound on tokens ended it


def model_card(manifest: Manifest) -> str:
    """Return README.md of an adapter: what it does, how well, how big, where it came from, how to load it."""
    task, tuned, kind = manifest.task, manifest.hyperparameters, kind_of(manifest.task)
    method = method_of(tuned)
    params = method.params(tuned).items()
    own = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in params)
    pipeline = f"\npipeline_tag: {kind.hub_pipeline}" if kind.hub_pipeline else ""
    on_rows = [("this adapter", _number(manifest.test_metrics.get(task.metric)))]
    for one in manifest.baselines:
        title = baseline_title(one.name) if one.answer is None else f"always {kind.show(one.answer)}"
        on_rows.append((title, _number(one.test_metrics.get(task.metric))))
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
    answers = "\n\n---\n\n".join(
        f"Prompt:\n\n{fenced(sample.prompt)}\n\nReference:\n\n{fenced(sample.reference)}\n\n"
        f"Answer:\n\n{fenced(sample.answer)}"
        for sample in manifest.samples
    )
    start, names = manifest.start_from, _source_names(task.source)
    started = "" if start is None else f" It started from `{start['name']}` (content `{start['digest'][:16]}`)."
    data = ", ".join(names if task.source.hub else [f"`{name}`" for name in names]) or "not named"
    sections = [
        f"---\nbase_model: {manifest.base_model.id}\nlibrary_name: peft{pipeline}\ntags: [{tuned.method}]\n---",
        f"# {task.registered_name}",
        f"{method.title} adapter for `{manifest.base_model.id}`: {task.kind.replace('-', ' ')}"
        + (f" into {', '.join(task.labels)}." if task.labels else ".")
        + _POOLS.get(task.pooling, ""),
        "## Scores",
        _score_table(manifest),
        _seeds(manifest),
        _table(("on the same test rows", task.metric), on_rows) if manifest.baselines else "",
        _table(("slice of the test rows", "rows", task.metric), slices) if slices else "",
        chosen,
        " ".join(searched),
        f"## Answers\n\nThe first test rows, with what this adapter makes of them.\n\n{answers}" if answers else "",
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


def resealed(folder: Path, **changes: Any) -> dict[str, bytes]:
    """Return the files of a sealed adapter folder with other fields in its manifest, and a card that follows them.

    Raises:
        IntegrityError: the folder is not what its manifest says.
    """
    manifest = replace(verify(folder), **changes)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    return sealed(files | {"README.md": model_card(manifest).encode()}, manifest)


def _score_table(manifest: Manifest) -> str:
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
            _number(manifest.test_metrics.get(name)),
            _number(manifest.validation_metrics.get(name)),
            str(spreads.get(name, "-")),
        )
        for name in names
    ]
    return _table(("metric", "test", "validation", "validation over seeds"), rows)


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
        return f"{own}{between_texts(task)}\n\nPEFT alone refuses it: its files cannot say what the head reads."
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
```{between_texts(task)}{asking}{plain}"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def _number(value: float | None) -> str:
    """Return a score as tables have it."""
    return "-" if value is None else f"{value:.4f}"


# ---- MLflow's page of a version --------------------------------------------------------------------------------------
MAX_PAGE = 5000  # characters of a description in MLflow's tables
_MAX_LINE = 300


def version_page(manifest: Manifest, candidate: Candidate, decision: Decision, version: int) -> str:
    """Return the description of a version: how good and how big it is, why it was promoted, how to pull it.

    Of its reasons, the last ones are kept that fit.
    """
    name, metric = f"{manifest.task.registered_name}:{version}", decision.metric
    over_seeds, test = seed_statistics(candidate).get(metric), candidate.test_metrics.get(metric)
    score = f"{metric} {test:.4f} on the test rows" if test is not None else f"{metric}, not scored on test rows"
    seeds = f", {over_seeds} on validation rows over {over_seeds.count} seeds" if over_seeds else ""
    size = f"{candidate.stored_bytes:,} bytes. On `{manifest.base_model.id}`, promoted {decision.at[:10]}."
    beside = [(baseline_title(each.name), _number(each.test_metrics.get(metric))) for each in candidate.baselines]
    compared = [("**this adapter**", f"**{_number(test)}**"), *(row for row in beside if row[1] != "-")]
    before = [
        f"{score}{seeds}; {size}",
        _score_table(manifest),
        *([_table(("on the same test rows", metric), compared)] if len(compared) > 1 else []),
        "### Why it was promoted",
    ]
    after = [
        "### Size",
        _size_table(manifest),
        f"### Use it\n\n```\nloraxs-search pull {name}\nloraxs-search predict {name} TEXT\n```",
        f"Trial `{manifest.trial_id}` of study `{manifest.study}`. How to load it with PEFT and others: `README.md` "
        "among its files.",
    ]
    reasons = list(decision.reasons)
    if decision.comparisons:  # the more often its test rows were used, the less the next score says
        last = decision.comparisons[-1]
        sure = f", held to a confidence of {show_confidence(last.confidence)}" if last.confidence else ""
        reasons.append(f"comparison {last.number} on these test rows{sure}")
    reasons += ["promoted by force"] * decision.forced
    room = MAX_PAGE - len("\n\n".join([*before, *after])) - 60  # for what says that some are left out
    kept: list[str] = []
    for reason in reversed(reasons):
        line = f"- {' '.join(reason.split())}"
        kept.append(line if len(line) <= _MAX_LINE else f"{line[: _MAX_LINE - 1]}…")
        room -= len(kept[-1]) + 1
        if room < 0:
            kept.pop()
            break
    more = len(reasons) - len(kept)
    left_out = [f"{more} more are left out; `loraxs-search history` has all."] if more else []
    return "\n\n".join([*before, "\n".join(reversed(kept)), *left_out, *after])[:MAX_PAGE]


def _source_names(source: DataSource) -> list[str]:
    """Return the data sets of the hub or the files that rows come from; files without their folders."""
    if source.hub:
        names = ["/".join(filter(None, (source.hub, source.config)))]
    else:
        names = sorted({path.rpartition("/")[2] for path in source.data_files.values()})
    elsewhere = sorted(source.elsewhere.items())
    return names + [f"{'/'.join(filter(None, (it.hub, it.config)))} ({split})" for split, it in elsewhere]
