"""Adapters as the registry hands them out, which nothing has trained."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from loraxs_search.base_model.load import load_model
from loraxs_search.methods.verification import make_reference_logits
from loraxs_search.records.codec import to_json
from loraxs_search.records.task import BaseModel, BaseModelRef, DataSource, Task
from loraxs_search.records.trial import Hyperparameters, TrialSpec
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.trial.attach import attach
from support.sealed import manifest_of


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
    """
    task = task or _classifying(num_labels)
    values: dict[str, Any] = {"init_std": 0.5, "learning_rate": 1e-3, "head_learning_rate": 1e-3}
    hyper = Hyperparameters(**{**values, "seed": seed, **hyperparameters})
    model = attach(load_model(base, kind_of(task).model), TrialSpec("0", {}, hyper))
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "loraxs" not in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) / parameter.shape[-1] ** 0.5
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink()  # PEFT's; the registry writes its own
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    probe = make_reference_logits(model, model.config.vocab_size)
    known = {"base_digest": base.weight_digest, "probe": probe, "files": files}
    manifest = manifest_of(task, BaseModelRef(base.id), hyper, **known)
    (folder / "manifest.json").write_text(to_json(manifest))
    return folder


def _classifying(num_labels: int) -> Task:
    kind = "regression" if num_labels == 1 else "sequence-classification"
    metric = "pearson" if num_labels == 1 else "accuracy"
    labels = () if num_labels == 1 else tuple(f"label {i}" for i in range(num_labels))
    return Task(f"task-{num_labels}", kind, DataSource(), "text", "label", metric, "maximize", (metric,), labels=labels)
