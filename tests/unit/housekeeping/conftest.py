from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from support.aged import age, base_name
from support.sealed import promote
from support.studies import TASK
from support.toys import adapter

from loraxs_search.factors.store import FactorStore


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
        return adapter(folder, "00000", task=TASK, study=study, base_digest=base_digest, factors=factors)

    return make


@pytest.fixture
def register(sealed, tmp_path):
    """Register an adapter as champion of the task `t`."""

    def make(uri: str, *, base_digest: str, factors: dict[str, str]) -> None:
        promote(sealed(tmp_path / "promoted", base_digest=base_digest, factors=factors), uri)

    return make
