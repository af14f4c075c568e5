"""On a checkpoint without the pooler that its head reads, an adapter is the same model wherever it is loaded."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, PreTrainedModel

from loraxs_search import AdapterBank
from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.load import load_model, missing_poolers
from loraxs_search.methods.export.models import write_plain_lora
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.records.base import BaseModel
from loraxs_search.tasks.kinds import classifier

from .conftest import FAMILIES, save_base, tokenizer

INPUTS = {"input_ids": torch.arange(4, 34).view(3, 10), "attention_mask": torch.ones(3, 10, dtype=torch.long)}


@pytest.fixture
def base(tmp_path):
    """Saved with the head for masked words, as many checkpoints are."""
    torch.manual_seed(0)
    config = FAMILIES["bert"]()
    assert isinstance(config, BertConfig)
    BertForMaskedLM(config).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    return BaseModel(id="poolerless", path=str(tmp_path / "base"), weight_digest="0" * 64)


@pytest.fixture
def folder(base, make_adapter, tmp_path):
    names = tuple(module.name for module in linear_modules(base, classifier(2)))
    return make_adapter(tmp_path / "native", base, rank=4, target_modules=names)


def plain(base: BaseModel, seed: int) -> PreTrainedModel:
    """Load the base as others do: its pooler is drawn at random."""
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(base.path, num_labels=2).eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    found: Tensor = model(**INPUTS).logits
    return found


def test_peft_and_a_bank_load_the_same_model_whatever_was_drawn(base, folder, tmp_path):
    model = load_adapter_folder(folder, base=base)
    write_plain_lora(LoraXS().plain_lora(model), tmp_path / "lora")
    for form, seed in [("native", 1), ("native", 2), ("lora", 3)]:
        there = PeftModel.from_pretrained(plain(base, seed), str(tmp_path / form)).eval()
        torch.testing.assert_close(logits(there), logits(model), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(plain(base, 1)), logits(plain(base, 2)), atol=1e-3)
    bank = AdapterBank(base)
    bank.load("it", folder)
    torch.testing.assert_close(torch.stack(bank.logits(["it"] * 3, INPUTS)), logits(model), atol=1e-5, rtol=1e-5)


def test_a_pooler_that_is_there_is_left_as_it_is(base, tmp_path):
    assert missing_poolers(load_model(base, classifier(2))) == ("bert.pooler.dense",)
    whole = save_base(tmp_path / "whole")
    model = load_model(whole, classifier(2))
    assert missing_poolers(model) == ()
    torch.testing.assert_close(logits(model), logits(plain(whole, 1)))
