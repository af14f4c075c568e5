"""The tokenizer that a GGUF file carries.

Byte-level vocabularies whose split of text is known here are built from the file's own fields, so that each version of
transformers gives the same tokens; it reads the others. (Its 5.0 takes another end token than the file's, and none
knows by name that SmolLM cuts numbers into digits before anything else, which shows where blanks stand before one.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def read_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a GGUF file, with its chat template if it has one.

    Raises:
        Exception: whatever a damaged file leads to.
    """
    fields = gguf.GGUFReader(source).fields
    split = _splits().get(_value(fields, "pre"))
    if split is None or _value(fields, "model") != "gpt2":
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        return tokenizer
    tokens = _value(fields, "tokens")
    numbers = {name: _value(fields, f"{key}_token_id") for name, key in _SPECIAL.items()}
    special = {name: tokens[number] for name, number in numbers.items() if number is not None}
    raw = _byte_level(fields, tokens, split)
    if _value(fields, "add_bos_token") and "bos_token" in special:
        begin = special["bos_token"]
        raw.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, tokens.index(begin))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    tokenizer.chat_template = _value(fields, "chat_template", prefix="tokenizer")
    return tokenizer


def _byte_level(fields: Any, tokens: list[str], split: pre_tokenizers.PreTokenizer) -> Tokenizer:
    merges = [tuple(merge.split(" ")) for merge in _value(fields, "merges")]
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    raw.pre_tokenizer = split
    raw.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, _value(fields, "token_type"), strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            added = AddedToken(token, normalized=False, special=kind == _CONTROL)
            raw.add_special_tokens([added]) if kind == _CONTROL else raw.add_tokens([added])
    return raw


def _splits() -> dict[Any, pre_tokenizers.PreTokenizer]:
    """Return how text is cut before byte-pair encoding, by GGUF's name for it."""
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_alone])
    return {"smollm": digits, "gpt-2": bytes_alone}


def _value(fields: Any, name: str, prefix: str = "tokenizer.ggml") -> Any:
    field = fields.get(f"{prefix}.{name}")
    return None if field is None else field.contents()
