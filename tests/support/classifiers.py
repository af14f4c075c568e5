"""Small classifiers of four builds, for what needs the tuner alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

VOCAB = 64
_SMALL = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
_GPT2 = {"vocab_size": VOCAB, "n_embd": 24, "n_layer": 2, "n_head": 2, "eos_token_id": 1, "bos_token_id": 1}
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**_SMALL, intermediate_size=40),
    "roberta": lambda: RobertaConfig(**_SMALL, intermediate_size=40),
    "gpt2": lambda: GPT2Config(**_GPT2, pad_token_id=0),
    "llama": lambda: LlamaConfig(**_SMALL, intermediate_size=40),
}


def small_classifier(family: str = "bert", seed: int = 0) -> PreTrainedModel:
    """Return a classifier in evaluation mode with weights drawn from a seed."""
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(FAMILIES[family]()).eval()
