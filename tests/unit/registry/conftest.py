from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support.toys import TASK as TOY
from support.toys import adapter, rows

from loraxs_search.records.search import Baseline, Candidate, PromotionRule
from loraxs_search.records.task import DataSource
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.store import Registry

TASK = replace(
    TOY,
    name="movie-reviews",
    source=DataSource(data_files={"train": "/data/train.jsonl.gz"}),
    text="sentence",
    label="label",
    metrics=("accuracy", "f1"),
    labels=("negative", "positive"),
)
CONSTANT = PromotionRule(require="constant")


def plain_candidate(trial_id: str, accuracy: float, stored_bytes: int = 1000, **other) -> Candidate:
    """A candidate with one score on both splits, and without baselines."""
    scores = {"accuracy": accuracy}
    made = Candidate("s1", trial_id, TASK.name, scores, scores, stored_bytes, "data", "base")
    return replace(made, **other)


def candidate(trial_id: str = "t0", accuracy: float = 0.8, stored_bytes: int = 1000, **other) -> Candidate:
    """A candidate with another score of F1, and a constant answer that is right in half of the rows."""
    constant = Baseline("constant", test_metrics={"accuracy": 0.5})
    measured = {"test_metrics": {"accuracy": accuracy, "f1": accuracy - 0.01}, "baselines": (constant,)}
    return plain_candidate(trial_id, accuracy, stored_bytes, **(measured | other))


@pytest.fixture
def make_folder(tmp_path):
    """Make a sealed adapter folder of a trial."""

    def make(trial_id: str = "t0", **other) -> Path:
        return adapter(tmp_path / "made" / trial_id, trial_id, **{"task": TASK} | other)

    return make


@pytest.fixture
def with_versions(promote, registry):
    """Have a registry with one to three versions: of t0, t1 and t2, with 300, 340 and 380 right answers."""

    def start(count: int) -> Registry:
        for number in range(count):
            promote(f"t{number}", 300 + 40 * number)
        return registry

    return start


@contextlib.contextmanager
def killed_at(call: str, key: str = ""):
    """Be killed when MLflow's client is about to do something, with a key that begins so."""
    original = getattr(MlflowClient, call)

    def killed(client, name, *arguments):
        if str(arguments[0]).startswith(key):
            raise KeyboardInterrupt
        return original(client, name, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, call, killed)
        yield


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def registry(store_uri):
    return Registry(store_uri)


@pytest.fixture
def promoter(store_uri):
    return Promoter(store_uri, TASK.name)


@pytest.fixture
def promote(promoter, make_folder, tmp_path):
    """Promote one candidate with its answers to 400 rows; returns the decision and the version."""

    def promote(
        trial_id, right, *, rule=CONSTANT, data="data", answers=None, rescore=None, forced=False, seen=(), **other
    ):
        known = {"base_model": "org/Tiny", "base_digest": "tiny", "data_fingerprint": data, "test_fingerprint": data}
        found = candidate(trial_id, right / 400, **known | other)
        path, folder = tmp_path / f"{trial_id}.safetensors", tmp_path / "made" / trial_id
        path.write_bytes((answers or rows(right)).to_bytes())
        if not folder.exists():
            make_folder(trial_id, base_digest="tiny", data_fingerprint=data)
        return promoter.promote(rule, TASK, [found], {trial_id: folder}, forced, {trial_id: path}, rescore, seen=seen)

    return promote
