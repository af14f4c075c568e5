"""A row's logits through the bank are those of its adapter alone, whatever the other rows are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import families
from torch import Tensor

from loraxs_search import AdapterBank
from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.records.task import BaseModel, BaseModelRef
from loraxs_search.tasks.kinds import classifier

from .conftest import VOCAB, save_base

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
FAMILIES = ["bert", "roberta", "distilbert", "gpt2", "llama"]


@pytest.fixture(scope="module", autouse=True)
def _factors(tmp_path_factory):
    with use_factor_store(FactorStore(tmp_path_factory.mktemp("factors"))):
        yield


@dataclass
class Adapters:
    """Adapters of one base as unlike as they may be, in folders by name."""

    base: BaseModel
    folders: dict[str, Path]
    models: dict[str | None, Any] = field(default_factory=dict)

    def alone(self, name: str | None, inputs: dict[str, Tensor]) -> Tensor:
        if name not in self.models:
            self.models[name] = (
                load_model(self.base, classifier(2))
                if name is None
                else load_adapter_folder(self.folders[name], base=self.base)
            )
        with torch.no_grad():
            return self.models[name](**inputs).logits


@pytest.fixture(scope="module", params=families(FAMILIES))
def adapters(request, tmp_path_factory, make_adapter):
    folder = tmp_path_factory.mktemp(request.param)
    save_base(folder / "base", request.param)
    base = locate(BaseModelRef(str(folder / "base")))
    names = tuple(module.name for module in linear_modules(base, classifier(2)))
    half = len(names) // 2
    kinds: dict[str, dict[str, Any]] = {
        "all": {"rank": 4, "target_modules": names},
        "all-too": {"rank": 4, "target_modules": names, "scale": 2.0, "sigma": "output"},
        "first": {"rank": 8, "target_modules": names[:half], "scale": 0.5, "sigma": "sqrt"},
        "second": {"rank": 3, "target_modules": names[half:], "sigma": "none", "num_labels": 5},
        "bottom": {"rank": 4, "target_modules": names[::3], "basis": "bottom", "num_labels": 3},
        "number": {"rank": 2, "target_modules": names[1::2], "basis": "bottom", "num_labels": 1},
        "buckets": {"rank": 4, "target_modules": names, "factor_rank": 16},
    }
    if request.param == "roberta":  # the one whose head has a layer that may be left out
        kinds["output"] = {"rank": 4, "target_modules": names, "head": "output"}
        kinds["output-4"] = {"rank": 4, "target_modules": names, "head": "output", "num_labels": 4}
    folders = {
        name: make_adapter(folder / name, base, seed=seed, **kind) for seed, (name, kind) in enumerate(kinds.items())
    }
    return Adapters(base, folders)


@pytest.fixture(scope="module")
def bank(adapters):
    bank = AdapterBank(adapters.base)
    for name, folder in adapters.folders.items():
        bank.load(name, folder)
    return bank


def batch(num_rows: int, seed: int = 3) -> dict[str, Tensor]:
    """Rows of 4 to 9 tokens, padded on the right."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCAB, (num_rows, 9), generator=draw)
    mask = torch.arange(9) < torch.randint(4, 10, (num_rows, 1), generator=draw)
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def row(inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    return {name: value[index : index + 1] for name, value in inputs.items()}


def mixtures(names: list[str]) -> list[list[str | None]]:
    """Batches: each adapter with all others and bare rows; in runs; in turn; one adapter for all."""
    return [
        [*names, None, *reversed(names), None],
        [name for name in [*names, None] for _ in range(3)],
        [names[0], None, names[0], names[0], names[2], names[0]],
        [names[-1]] * 6,
        [None] * 4,
    ]


def test_a_row_is_what_its_adapter_gives_alone(adapters, bank):
    firsts = torch.stack([adapters.alone(name, row(batch(1), 0))[0, :1] for name in adapters.folders])
    assert torch.pdist(firsts).min() > 1e-3, "they are far from equal"
    for names in mixtures(list(adapters.folders)):
        inputs = batch(len(names))
        for index, (name, logits) in enumerate(zip(names, bank.logits(names, inputs), strict=True)):
            expected = adapters.alone(name, row(inputs, index))[0]
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, expected, **TOLERANCE)


def test_a_base_in_bfloat16_is_served_in_bfloat16(tmp_path, make_adapter):
    save_base(tmp_path / "exact", "roberta")
    model = load_model(locate(BaseModelRef(str(tmp_path / "exact"))), classifier(2))
    model.bfloat16().save_pretrained(tmp_path / "base")
    base = locate(BaseModelRef(str(tmp_path / "base")))
    names = tuple(module.name for module in linear_modules(base, classifier(2)))
    folders = {name: make_adapter(tmp_path / name, base, seed=ord(name), rank=4, target_modules=names) for name in "ab"}
    bank = AdapterBank(base)
    for name, folder in folders.items():
        bank.load(name, folder)
    adapters, order, inputs = Adapters(base, folders), ["a", "b", None, "b"], batch(4)
    for index, (name, logits) in enumerate(zip(order, bank.logits(order, inputs), strict=True)):
        expected = adapters.alone(name, row(inputs, index))[0]
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected.float(), atol=3e-2, rtol=3e-2)
