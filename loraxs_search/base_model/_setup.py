"""How a base is set up beside its weights: its tokenizer, and what its configuration says of the numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from loraxs_search.base_model._library import library_call
from loraxs_search.base_model.load import has_tokenizer, load_tokenizer
from loraxs_search.records import BaseModel, BaseSetup

# Names and habits of a configuration; whatever else it says may change numbers.
_NO_NUMBERS = {
    *("architectures", "transformers_version", "name_or_path", "tokenizer_class", "finetuning_task", "dtype"),
    *("torch_dtype", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params"),
    *("use_cache", "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward"),
}
# Cases, accents in both forms, spaces, digits, scripts and marks: tokenizers of one vocabulary differ in these.
_TEXT = (
    "The QUICK brown fox  can't jump\n\n\tover 12,345.67 dogs -- caf\u00e9 cafe\u0301 na\u00efve \u0130\u00df"
    " \u6570\u5b66 \u043c\u0438\u0440 \u05e9\u05dc\u05d5\u05dd \U0001f642 x_y==z; <b>&amp;</b> #1 'a'\u2026 "
)


def with_setup(base: BaseModel) -> BaseModel:
    """Return a base with its setup; unchanged where that is known.

    Raises:
        BaseModelError: tokenizer or configuration cannot be read.
    """
    if base.setup is not None:
        return base
    with library_call(base):
        config: dict[str, Any] = AutoConfig.from_pretrained(base.path).to_dict()
    tokenizer = tokenizer_digest(load_tokenizer(base)) if has_tokenizer(base) else ""
    return replace(base, setup=BaseSetup(tokenizer, dict(_numbers(config))))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of what a tokenizer does, whatever file format or version of a library it was read by."""
    special = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    does = {
        "vocabulary": tokenizer.get_vocab(),
        "special": {name: getattr(tokenizer, f"{name}_token_id", None) for name in special},
        "text": tokenizer(_TEXT, verbose=False)["input_ids"],
        "pair": tokenizer(_TEXT, _TEXT.lower(), verbose=False)["input_ids"],
        "template": tokenizer.chat_template,
    }
    if tokenizer.truncation_side != "right":  # only then, so that digests from before it was looked at stay
        does["truncation"] = tokenizer.truncation_side
    return hashlib.sha256(json.dumps(does, sort_keys=True).encode()).hexdigest()


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float | bool | None]]:
    for name, value in values.items():
        if name in _NO_NUMBERS or name.startswith("_") or "dropout" in name:
            continue
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, bool | str):
            yield f"{prefix}{name}", value
        else:
            yield f"{prefix}{name}", float(value) if isinstance(value, int | float) else json.dumps(value, default=str)
