"""Tiny models of every supported family, made from configurations; the quickstart's base where a real one matters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.families import families
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from loraxs_search.base_model.locate import locate
from loraxs_search.records.task import BaseModel, BaseModelRef

VOCAB = 64
SMALL = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**SMALL, intermediate_size=32),
    "roberta": lambda: RobertaConfig(**SMALL, intermediate_size=32, max_position_embeddings=40),
    "distilbert": lambda: DistilBertConfig(vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "deberta": lambda: DebertaV2Config(**SMALL, intermediate_size=32, relative_attention=True, pos_att_type=["c2p"]),
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, eos_token_id=1, bos_token_id=1),
    "llama": lambda: LlamaConfig(**SMALL, intermediate_size=32, num_key_value_heads=1, eos_token_id=1, bos_token_id=1),
    "modernbert": lambda: ModernBertConfig(
        **SMALL, intermediate_size=32, pad_token_id=0, eos_token_id=1, bos_token_id=2, cls_token_id=2, sep_token_id=1
    ),
}


@pytest.fixture(autouse=True)
def loraxs_home(tmp_path, monkeypatch):
    """An empty home folder for each test."""
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def save_tokenizer(folder: Path, **special: str) -> None:
    words = {"[PAD]": 0, "</s>": 1, "[UNK]": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", **special).save_pretrained(folder)


@pytest.fixture(params=families(CONFIGS))
def family(request):
    return str(request.param)


@pytest.fixture
def make_base(tmp_path):
    """Save a tiny body with random weights (no head) as a folder and locate it."""

    def make(name: str) -> BaseModel:
        folder = tmp_path / name
        torch.manual_seed(0)
        AutoModel.from_config(CONFIGS[name]()).save_pretrained(folder)
        if name in ("gpt2", "llama"):
            save_tokenizer(folder, eos_token="</s>")
        else:
            save_tokenizer(folder, pad_token="[PAD]", eos_token="</s>")
        return locate(BaseModelRef(id=str(folder)))

    return make


@pytest.fixture
def quickstart(quickstart_base):
    return quickstart_base
