"""Scoring a stored adapter: compares a champion with candidates on the candidates' test rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from loraxs_search import base_model
from loraxs_search.errors import TaskDataError
from loraxs_search.methods.loading import load_adapter_folder, read_manifest
from loraxs_search.records import Task
from loraxs_search.tasks import prepare
from loraxs_search.trial.evaluate import score_rows, split_metrics


@dataclass(frozen=True)
class FolderScores:
    """An adapter's metrics on a task's test split, and its answer to each row."""

    metrics: dict[str, float]
    predictions: tuple[float, ...] | tuple[str, ...]
    labels: tuple[float, ...] | tuple[str, ...]
    data_fingerprint: str
    test_fingerprint: str


def score_folder(folder: Path, task: Task) -> FolderScores:
    """Load an adapter folder on its base, and score it on the test rows of `task`.

    Texts are tokenised for the adapter's own base, cut where the task says.

    Raises:
        TaskDataError: its labels are not the task's.
        BaseModelError: its base is not on this machine.
    """
    manifest = read_manifest(folder)
    trained_for = manifest.task
    if (trained_for.kind, trained_for.labels) != (task.kind, task.labels):
        raise TaskDataError(
            f"Task {task.name} must have the labels the adapter was trained for, {list(trained_for.labels)}"
            f" ({trained_for.kind}), but has {list(task.labels)} ({task.kind})."
        )
    base = base_model.locate(manifest.base_model)
    data = prepare(task, base_model.load_tokenizer(base))
    model = load_adapter_folder(folder, base=base)
    scores = score_rows(model, data, "test", np.arange(data.num_rows("test")), torch.device("cpu"))
    return FolderScores(
        split_metrics(data, "test", scores),
        tuple(scores.answers.tolist()),
        tuple(data.labels("test").tolist()),
        data.data_fingerprint,
        data.test_fingerprint,
    )
