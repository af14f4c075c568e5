"""A small base with a tokenizer, and adapters of it."""

from __future__ import annotations

import pytest
import torch

from loraxs_search.base_model.locate import locate
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.records.task import BaseModelRef

MODULES = tuple(f"encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "value"))
TARGETS = tuple(f"bert.{name}" for name in MODULES)


@pytest.fixture(scope="session", autouse=True)
def _factor_store(tmp_path_factory):
    with use_factor_store(FactorStore(tmp_path_factory.mktemp("factors"))):
        yield


@pytest.fixture(scope="session")
def base(tiny_base):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(tiny_base.parent / "base-home"))
        return locate(BaseModelRef(str(tiny_base)))


@pytest.fixture(scope="session")
def folders(base, make_adapter, tmp_path_factory):
    """Three adapters of one shape and one of another."""
    kinds = {
        "a": {"rank": 4},
        "b": {"rank": 4, "scale": 2.0},
        "c": {"rank": 4, "sigma": "none"},
        "d": {"rank": 2, "num_labels": 3},
    }
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(folder / name, base, seed=seed, target_modules=TARGETS, **kind)
        for seed, (name, kind) in enumerate(kinds.items())
    }


@pytest.fixture(scope="session")
def inputs():
    ids = torch.randint(1000, 20000, (6, 7), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
