"""Tiny models of every supported family, made from configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.bases import families, word_tokenizer
from transformers import AutoConfig, AutoModel

from loraxs_search.base_model.locate import locate
from loraxs_search.records.task import BaseModel, BaseModelRef

VOCAB = 64
_TWO = {"num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32} | _TWO
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL | {"max_position_embeddings": 40},
    "distilbert": {"vocab_size": VOCAB, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "deberta-v2": SMALL | {"relative_attention": True, "pos_att_type": ["c2p"]},
    "gpt2": {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "eos_token_id": 1, "bos_token_id": 1},
    "llama": SMALL | {"num_key_value_heads": 1, "eos_token_id": 1, "bos_token_id": 1},
    "modernbert": SMALL
    | {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 1},
}


@pytest.fixture(params=families(CONFIGS))
def family(request):
    return str(request.param)


@pytest.fixture
def make_base(tmp_path):
    """Save a tiny body with random weights (no head) as a folder and locate it."""

    def make(name: str) -> BaseModel:
        folder = tmp_path / name
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(name, **CONFIGS[name])).save_pretrained(folder)
        padding = None if name in ("gpt2", "llama") else "[PAD]"
        tokens = ["[PAD]", "</s>", "[UNK]", *(f"w{i}" for i in range(3, VOCAB))]
        word_tokenizer(tokens, pad_token=padding, eos_token="</s>").save_pretrained(folder)
        return locate(BaseModelRef(id=str(folder)))

    return make
