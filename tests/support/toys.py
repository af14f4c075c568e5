"""Adapters of no meaning, sealed as real ones are: for whoever registers and pulls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loraxs_search.records.search import Baseline, Candidate
from loraxs_search.records.task import BaseModelRef, DataSource, Task
from loraxs_search.records.trial import AdapterSize, Hyperparameters
from loraxs_search.registry.evidence import ScoredRows
from support.sealed import manifest_of, seal

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
