from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support.sealed import seal

from loraxs_search.records import (
    AdapterSize,
    Baseline,
    BaseModelRef,
    Candidate,
    DataSource,
    Hyperparameters,
    Manifest,
    ReferenceLogits,
    Task,
)
from loraxs_search.registry.card import model_card


@pytest.fixture(scope="session")
def task() -> Task:
    return Task(
        name="movie-reviews",
        kind="sequence-classification",
        source=DataSource(data_files={"train": "/data/train.jsonl.gz"}),
        text="sentence",
        label="label",
        metric="accuracy",
        direction="maximize",
        metrics=("accuracy", "f1"),
        labels=("negative", "positive"),
    )


@pytest.fixture(scope="session")
def candidate() -> Callable[..., Candidate]:
    def make(trial_id: str = "t0", accuracy: float = 0.8, stored_bytes: int = 1000, **other) -> Candidate:
        fields = {
            "study": "s1",
            "trial_id": trial_id,
            "task": "movie-reviews",
            "test_metrics": {"accuracy": accuracy, "f1": accuracy - 0.01},
            "validation_metrics": {"accuracy": accuracy},
            "stored_bytes": stored_bytes,
            "data_fingerprint": "data",
            "base_digest": "base",
            "baselines": (Baseline("constant", test_metrics={"accuracy": 0.5}),),
        }
        return Candidate(**(fields | other))

    return make


@pytest.fixture
def manifest(task: Task) -> Callable[..., Manifest]:
    def make(trial_id: str = "t0", **other) -> Manifest:
        fields = {
            "task": task,
            "base_model": BaseModelRef(id="org/base", revision="abc123"),
            "base_digest": "base",
            "data_fingerprint": "data",
            "study": "s1",
            "trial_id": trial_id,
            "params": {"rank": 4, "learning_rate": 0.001},
            "hyperparameters": Hyperparameters(
                rank=4, target_modules=("a", "b"), learning_rate=1e-3, head_learning_rate=1e-2
            ),
            "validation_metrics": {"accuracy": 0.81, "f1": 0.8},
            "test_metrics": {"accuracy": 0.8},
            "size": AdapterSize(r_parameters=32, head_parameters=10, stored_bytes=400),
            "probe": ReferenceLogits(input_ids=((1, 2),), logits=((0.5, -0.25),)),
            "versions": {"torch": "2.13.0"},
            "created_at": "2026-01-01T00:00:00Z",
        }
        return Manifest(**(fields | other))

    return make


@pytest.fixture
def make_folder(tmp_path: Path, manifest: Callable[..., Manifest]) -> Callable[..., Path]:
    """Make a sealed adapter folder of a trial."""

    def make(trial_id: str = "t0", **other) -> Path:
        folder = tmp_path / "made" / trial_id
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(f"R of {trial_id}".encode())
        (folder / "adapter_config.json").write_text('{"peft_type": "LORAXS"}')
        made = manifest(trial_id, **other)
        (folder / "README.md").write_text(model_card(made))
        seal(folder, made)
        return folder

    return make


@pytest.fixture
def killed_at():
    """Be killed when MLflow's client is about to do something, with a key that begins so."""

    @contextlib.contextmanager
    def kill(call, key=""):
        original = getattr(MlflowClient, call)

        def killed(client, name, *arguments):
            if str(arguments[0]).startswith(key):
                raise KeyboardInterrupt
            return original(client, name, *arguments)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(MlflowClient, call, killed)
            yield

    return kill
