from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from support.aged import age, base_name
from support.sealed import seal
from support.studies import TASK

from loraxs_search.factors.store import FactorStore
from loraxs_search.records.adapter import Manifest, ReferenceLogits
from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.promotion import Candidate, PromotionRule
from loraxs_search.records.trial import AdapterSize, Hyperparameters
from loraxs_search.registry.changes import Promoter


@pytest.fixture
def base(fresh_home):
    """Make an unpacked base model, long unused, and return the digest of its weights."""

    def make(name: str) -> str:
        folder = fresh_home / "base_models" / base_name(name)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(f"weights of {name}".encode() * 100)
        age(folder)
        return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

    return make


@pytest.fixture
def factors(fresh_home):
    """Make the factor file of a weight, long unused, and return its key and checksum."""

    def make(seed: int) -> dict[str, str]:
        weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
        key, checksum = FactorStore().identify(weight, rank=4)
        age(fresh_home / "factors")
        return {key: checksum}

    return make


@pytest.fixture
def sealed():
    """Write a sealed adapter that stands on a base and factors."""

    def make(folder: Path, study: str = "s", *, base_digest: str = "b" * 64, factors: dict[str, str]) -> Path:
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"R")
        (folder / "README.md").write_text("card")
        hyper = Hyperparameters(rank=4, target_modules=("a",), learning_rate=1e-3, head_learning_rate=1e-2)
        manifest = Manifest(
            task=TASK,
            base_model=BaseModelRef("org/base"),
            base_digest=base_digest,
            data_fingerprint="data",
            study=study,
            trial_id="00000",
            params={"rank": 4},
            hyperparameters=hyper,
            validation_metrics={"accuracy": 0.9},
            test_metrics={"accuracy": 0.9},
            size=AdapterSize(16, 10, 400),
            probe=ReferenceLogits((), ()),
            versions={},
            created_at="2026-01-01T00:00:00Z",
            factors=factors,
        )
        seal(folder, manifest)
        return folder

    return make


@pytest.fixture
def register(sealed, tmp_path):
    """Register an adapter as champion of the task `t`."""

    def make(uri: str, *, base_digest: str, factors: dict[str, str]) -> None:
        folder = sealed(tmp_path / "promoted", base_digest=base_digest, factors=factors)
        candidate = Candidate("s", "00000", TASK.name, {"accuracy": 0.9}, {"accuracy": 0.9}, 400, "data", base_digest)
        Promoter(uri, TASK.name).promote(PromotionRule(), TASK, [candidate], {"00000": folder}, True)

    return make
