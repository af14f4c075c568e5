"""Small bases of many builds, with weights drawn at random, and which of them every change is tested on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLNetConfig,
)

USUAL = ("bert", "llama", "smollm")  # an encoder and a decoder: of the same build as what is shipped and shown


def families(names: Iterable[str]) -> list[Any]:
    """Return values of a test's parameter: one or two builds stand for all, and tests of the others are long."""
    known = list(names)
    usual = [name for name in known if name in USUAL] or known[:1]
    return [name if name in usual else pytest.param(name, marks=pytest.mark.long(part="bases")) for name in known]


SMALL = {"vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
BERT = BertConfig(**SMALL)
LLAMA = LlamaConfig(**SMALL, num_key_value_heads=2, pad_token_id=0)
_HALF = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
_HALVES = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in _HALF.items()}
# Its heads want as many end tokens in each row.
BART = BartConfig(vocab_size=40, d_model=32, eos_token_id=2, pad_token_id=1, **_HALVES)
XLNET = XLNetConfig(vocab_size=40, d_model=32, n_layer=2, n_head=4, d_inner=48, pad_token_id=0)  # reads the last token

# ---- language models -------------------------------------------------------------------------------------------------
_SPECIAL = ("<pad>", "<end>", "<begin>")
_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
_DECODER = {**SMALL, **_IDS, "vocab_size": len(_SPECIAL) + 256, "num_key_value_heads": 2}  # a token for each byte
_HEADS = {"head_dim": 8, "query_pre_attn_scalar": 8}
_ALTERNATING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
SMOLLM = LlamaConfig(**_DECODER, tie_word_embeddings=True)
GEMMA2 = Gemma2Config(**_DECODER, **_HEADS, **_ALTERNATING, final_logit_softcapping=2.0, attn_logit_softcapping=2.0)
DECODERS = {
    "smollm": SMOLLM,
    "llama": LlamaConfig(**_DECODER),
    "qwen2": Qwen2Config(**_DECODER),  # query, key and value have a bias
    "qwen3": Qwen3Config(**_DECODER, head_dim=8),  # normalises queries and keys
    "mistral": MistralConfig(**_DECODER, sliding_window=4),
    "gemma2": GEMMA2,
    "gemma3": Gemma3TextConfig(**_DECODER, **_HEADS, **_ALTERNATING),
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<begin>{{ message['role'] + ': ' + message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<begin>assistant: {% endif %}"
)


def base(config: PretrainedConfig, noise: float = 0.0) -> PreTrainedModel:
    """Return a classifier in evaluation mode, with eager attention; the same weights each time.

    Args:
        noise: Added to each weight: at the start they are so small that much of a model does next to nothing.
    """
    return _drawn(AutoModelForSequenceClassification, config, noise)


def language_model(config: PretrainedConfig, noise: float = 0.1) -> PreTrainedModel:
    """Return a language model in evaluation mode, with eager attention; the same weights each time.

    Args:
        noise: Added to each weight, so that every part of the model counts in its logits.
    """
    return _drawn(AutoModelForCausalLM, copy.deepcopy(config), noise)


def _drawn(auto: Any, config: PretrainedConfig, noise: float) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model


def save_language_model(folder: Path, config: PretrainedConfig = SMOLLM) -> Path:
    """Write a decoder and `byte_tokenizer` as a folder that `locate` finds, and return it.

    Args:
        config: One of `DECODERS`, or of their vocabulary.
    """
    language_model(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each byte of UTF-8, behind the three special ones; it adds none by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate([*_SPECIAL, *alphabet])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    pad, end, begin = _SPECIAL
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=pad, eos_token=end, bos_token=begin)
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def word_tokenizer(tokens: Sequence[str], max_length: int = 32, **special: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words, `[PAD]` and `[UNK]` among them; it adds none by itself."""
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(tokens)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    given = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": max_length, **special}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_input_names=inputs, **given)


# ---- classifiers of four builds, for what needs the tuner alone ------------------------------------------------------
VOCAB = 64
_TINY = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
_GPT2 = {"vocab_size": VOCAB, "n_embd": 24, "n_layer": 2, "n_head": 2, "eos_token_id": 1, "bos_token_id": 1}
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**_TINY, intermediate_size=40),
    "roberta": lambda: RobertaConfig(**_TINY, intermediate_size=40),
    "gpt2": lambda: GPT2Config(**_GPT2, pad_token_id=0),
    "llama": lambda: LlamaConfig(**_TINY, intermediate_size=40),
}


def small_classifier(family: str = "bert", seed: int = 0) -> PreTrainedModel:
    """Return a classifier in evaluation mode with weights drawn from a seed."""
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(FAMILIES[family]()).eval()


THINKING = (  # thoughts in the last turn alone, as Qwen3's
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}::{% endif %}"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>::{% endif %}"
)
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def characters(
    *, prepend: str = "never", begins: bool = False, chat: str | None = None, drops: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters; a space is written as the mark that SentencePiece has for it.

    Args:
        drops: Leave out characters that it does not know, instead of writing `<unk>`.
    """
    special = ["<pad>", "<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    ids = {token: i for i, token in enumerate([*special, *"▁\n:?", *ascii_letters, *digits])}
    raw = Tokenizer(models.BPE(ids, [], unk_token=None if drops else "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    raw.decoder = decoders.Metaspace(prepend_scheme=prepend)
    if begins:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
        )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    extra = {"extra_special_tokens": special[4:], "chat_template": chat}
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=512, **names, **extra)
