"""Adapters of no meaning, sealed as real ones are, with candidates and reports: for whoever registers and pulls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loraxs_search.manifest import MANIFEST, Manifest, sealed, verify
from loraxs_search.records.adapter import ReferenceLogits
from loraxs_search.records.search import Baseline, Candidate, PromotionRule
from loraxs_search.records.task import BaseModel, BaseModelRef, DataSource, Task
from loraxs_search.records.trial import AdapterSize, Hyperparameters, TrialReport, TrialSpec
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.evidence import ScoredRows


def manifest_of(
    task: Task, base_model: BaseModelRef, hyperparameters: Hyperparameters, trial_id: str = "0", **changes: Any
) -> Manifest:
    """Return the manifest of an adapter of which nothing else is known."""
    unknown: dict[str, Any] = {name: {} for name in ("params", "validation_metrics", "test_metrics", "versions")}
    unknown |= dict.fromkeys(("base_digest", "data_fingerprint", "created_at"), "")
    unknown |= {"study": "s", "size": AdapterSize(0, 0, 0), "probe": ReferenceLogits((), ())}
    known = {"task": task, "base_model": base_model, "hyperparameters": hyperparameters, "trial_id": trial_id}
    return Manifest(**known, **unknown | changes)


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest.json` with the sha256 of every other file of a folder, and return it as written."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    (folder / MANIFEST).write_bytes(sealed(files, manifest)[MANIFEST])
    return verify(folder)


def promote(folder: Path, uri: str) -> str:
    """Promote the adapter of a folder, whatever the rule says, and return its task."""
    manifest = verify(folder)
    task, scores = manifest.task, {manifest.task.metric: 0.9}
    own = Candidate(manifest.study, manifest.trial_id, task.name, scores, scores, 400, "", manifest.base_digest)
    Promoter(uri, task.name).promote(
        PromotionRule(confidence=0, require="constant"), task, [own], {manifest.trial_id: folder}, forced=True
    )
    return task.name


def make_adapter(
    folder: Path,
    base: BaseModel,
    *,
    num_labels: int = 2,
    task: Task | None = None,
    seed: int = 0,
    **hyperparameters: Any,
) -> Path:
    """Write R and head of a trial at its start, far from zero, with a manifest; return the folder.

    Args:
        num_labels: Of a task that is made for it, unless one is given.
        hyperparameters: All linear layers are adapted where these say nothing else.
    """
    import torch

    from loraxs_search.base_model.layers import linear_modules
    from loraxs_search.base_model.load import load_model
    from loraxs_search.methods import method_of
    from loraxs_search.methods.loading import make_reference_logits
    from loraxs_search.methods.loraxs.model import body_fingerprint
    from loraxs_search.methods.stored import rounded
    from loraxs_search.tasks.kinds import kind_of
    from loraxs_search.trial.attach import attach

    if task is None:
        kind, metric = ("regression", "pearson") if num_labels == 1 else ("sequence-classification", "accuracy")
        labels = () if num_labels == 1 else tuple(f"label {i}" for i in range(num_labels))
        source = DataSource()
        task = Task(f"task-{num_labels}", kind, source, "text", "label", metric, "maximize", (metric,), labels=labels)
    values: dict[str, Any] = {"init_std": 0.5, "learning_rate": 1e-3, "head_learning_rate": 1e-3}
    if "target_modules" not in hyperparameters:
        values["target_modules"] = tuple(module.name for module in linear_modules(base, kind_of(task).model))
    hyper = Hyperparameters(**{**values, "seed": seed, **hyperparameters})
    bare = load_model(base, kind_of(task).model)
    fingerprint, model = body_fingerprint(bare), attach(bare, TrialSpec("0", {}, hyper))
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "loraxs" not in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) / parameter.shape[-1] ** 0.5
        if parameter.requires_grad:
            is_head = not method_of(hyper).is_adapter(name, model)
            parameter.data = rounded(parameter.data, hyper.stored_dtype, is_head=is_head)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in method_of(hyper).files(model, fingerprint).items():
        (folder / name).write_bytes(content)
    probe = make_reference_logits(model, model.config.vocab_size)
    seal(folder, manifest_of(task, BaseModelRef(base.id), hyper, base_digest=base.weight_digest, probe=probe))
    return folder


TASK = Task("toy", "sequence-classification", DataSource(hub="toy"), "t", "l", "accuracy", "maximize", ("accuracy",))
HYPERPARAMETERS = Hyperparameters(rank=4, target_modules=("q",), learning_rate=1e-3, head_learning_rate=1e-3)


def adapter(folder: Path, trial_id: str, content: bytes = bytes(100), **changes: Any) -> Path:
    """Write an adapter folder and seal it.

    Args:
        content: Of its tensors' file, behind the trial's id.
        changes: Fields of the manifest.
    """
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(trial_id.encode() + content)
    known = {"base_digest": "base", "data_fingerprint": "data", "study": "s1", "size": AdapterSize(16, 10, 400)}
    known |= {"task": TASK, "created_at": "2026-01-01", **changes}
    seal(folder, manifest_of(known.pop("task"), BaseModelRef("org/base"), HYPERPARAMETERS, trial_id, **known))
    return folder


def rows(right: int, num_rows: int = 400) -> ScoredRows:
    """Return answers to test rows of two labels, of which the first `right` are right."""
    labels = np.arange(num_rows) % 2
    return ScoredRows(np.where(np.arange(num_rows) < right, labels, 1 - labels), labels)


def candidate(trial_id: str, accuracy: float) -> Candidate:
    """Return a candidate that such an adapter is of."""
    scores = {"accuracy": accuracy}
    constant = Baseline("constant", test_metrics={"accuracy": 0.5})
    return Candidate("s1", trial_id, "toy", scores, scores, 400, "data", "base", "org/base", baselines=(constant,))


METRIC = "accuracy"


def report(trial_id: str, step: int, score: float, peers: Mapping[str, tuple[int, float]] | None = None) -> TrialReport:
    """Return a report of a score."""
    return replace(measured(trial_id, step, {METRIC: score}), peers=peers or {})


def measured(trial_id: str, step: int, metrics: Mapping[str, float]) -> TrialReport:
    """Return a report of several metrics."""
    return TrialReport(trial_id, step, metrics, 0.5, 1.0, 10, AdapterSize(1, 1, 1))


def together(scores: Mapping[str, float], step: int) -> list[TrialReport]:
    """Return the reports of trials that were scored in one evaluation."""
    return [
        report(trial_id, step, score, {name: (step, other) for name, other in scores.items() if name != trial_id})
        for trial_id, score in scores.items()
    ]
