"""Small bases of many builds, with weights drawn at random."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    XLNetConfig,
)

SMALL = {"vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
BERT = BertConfig(**SMALL)
LLAMA = LlamaConfig(**SMALL, num_key_value_heads=2, pad_token_id=0)
BART = BartConfig(  # its heads want as many end tokens in each row
    vocab_size=40,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    eos_token_id=2,
    pad_token_id=1,
)
XLNET = XLNetConfig(vocab_size=40, d_model=32, n_layer=2, n_head=4, d_inner=48, pad_token_id=0)  # reads the last token


def base(config: PretrainedConfig, noise: float = 0.0) -> PreTrainedModel:
    """Return a classifier in evaluation mode, with eager attention; the same weights each time.

    Args:
        noise: Added to each weight: at the start they are so small that much of a model does next to nothing.
    """
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model
