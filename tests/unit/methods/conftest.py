"""Tiny random models for classification, and one factor store for all tests of the room."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from support.bases import FAMILIES, VOCAB, families
from support.bases import small_classifier as make_base
from support.toys import manifest_of, seal

from loraxs_search.base_model.locate import locate
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.loading import make_reference_logits
from loraxs_search.methods.loraxs import LoraXSConfig, LoraXSLinear, use_factor_store
from loraxs_search.records.task import BaseModelRef, DataSource, Task
from loraxs_search.records.trial import Hyperparameters


@pytest.fixture(scope="session", autouse=True)
def _factor_store(tmp_path_factory):
    with use_factor_store(FactorStore(tmp_path_factory.mktemp("factors"))):
        yield


@pytest.fixture(params=families(FAMILIES))
def family(request):
    return request.param


@pytest.fixture(scope="session")
def inputs():
    ids = torch.randint(2, VOCAB, (5, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def adapt(family: str = "bert", **config) -> PeftModel:
    """Return a model with a LoRA-XS adapter whose R is far from zero."""
    config = {"r": 4, "target_modules": "all-linear", "task_type": "SEQ_CLS", "init_std": 0.5, **config}
    return get_peft_model(make_base(family), LoraXSConfig(**{"init_seed": 7, **config})).eval()


@torch.no_grad()
def logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor], **kwargs) -> torch.Tensor:
    return model(**inputs, **kwargs).logits


def layers(model: torch.nn.Module) -> dict[str, LoraXSLinear]:
    """Return the adapted layers of a model, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraXSLinear)}


# ---- folders ---------------------------------------------------------------------------------------------------------
TARGETS = ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense")
ABOUT = ("sequence-classification", DataSource(), "text", "label", "accuracy", "maximize", ("accuracy",))
TASK = Task("t", *ABOUT, labels=("no", "yes"))


def save_base(model, folder):
    """Save a model as a base, without a tokenizer; return it as `locate` finds it."""
    model.save_pretrained(str(folder))
    return locate(BaseModelRef(id=str(folder)))


def write_adapter(model, base, folder, base_model=None, **changes):
    """Save a PEFT model as a sealed adapter folder."""
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink()
    known = {"base_digest": base.weight_digest, "probe": make_reference_logits(model, model.config.vocab_size)}
    hyper, ref = Hyperparameters(TARGETS, 1e-3, 1e-3, rank=4), base_model or BaseModelRef(id=base.id)
    seal(folder, manifest_of(TASK, ref, hyper, "trial-1", **known | changes))
