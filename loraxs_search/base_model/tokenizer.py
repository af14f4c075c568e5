"""A base model's tokenizer, as the model needs it; and how the base is set up beside its weights.

The setup is its tokenizer, and what its configuration says of the numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from loraxs_search.base_model.layers import library_call
from loraxs_search.errors import BaseModelError
from loraxs_search.records.task import BaseModel, BaseSetup

_UNLIMITED = 10**9  # tokenizers that set no limit say 1e30
_TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "tekken.json")
# Cases, accents in both forms, spaces, digits, scripts and marks: tokenizers of one vocabulary differ in these.
_TEXT = (
    "The QUICK brown fox  can't jump\n\n\tover 12,345.67 dogs -- caf\u00e9 cafe\u0301 na\u00efve \u0130\u00df"
    " \u6570\u5b66 \u043c\u0438\u0440 \u05e9\u05dc\u05d5\u05dd \U0001f642 x_y==z; <b>&amp;</b> #1 'a'\u2026 "
)


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """Load a base model's tokenizer, set to pad with the model's token and on the model's side.

    Decoders often name no token: they pad with the tokenizer's own, else with the end-of-text token. A tokenizer
    that sets no limit gets that of the model's positions.

    Raises:
        BaseModelError: there is no tokenizer in the folder, or no token to pad with.
    """
    tokenizer = _tokenizer(base)
    with library_call(base):
        config = AutoConfig.from_pretrained(base.path)
    pad_id = pad_token_id(config, base, tokenizer)
    if tokenizer.pad_token_id != pad_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    tokenizer.padding_side = padding_side(config)
    if tokenizer.model_max_length >= _UNLIMITED and (positions := max_positions(config)) is not None:
        tokenizer.model_max_length = positions
    return tokenizer


def _has_tokenizer(base: BaseModel) -> bool:
    """Whether a base's folder holds a tokenizer."""
    return any(file for pattern in _TOKENIZER_FILES for file in Path(base.path).glob(pattern))


def pad_token_id(config: PretrainedConfig, base: BaseModel, tokenizer: PreTrainedTokenizerBase | None = None) -> int:
    """Return the token that pads rows: the model's, the tokenizer's, or the one that ends texts.

    Args:
        tokenizer: The base's, if it is loaded already; else it is loaded where the configuration names no token.
    Raises:
        BaseModelError: there is no such token.
    """
    configured = config.pad_token_id  # -1 in some configurations
    if isinstance(configured, int) and 0 <= configured < config.get_text_config().vocab_size:
        return configured
    tokenizer = _tokenizer(base) if tokenizer is None else tokenizer
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad_id is None:
        raise BaseModelError(f"The tokenizer of {base.id} must have a padding or an end-of-text token.")
    return int(pad_id)


def _tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    # transformers makes an empty tokenizer, without a word, where there is none.
    if not _has_tokenizer(base):
        raise BaseModelError(
            f"{base.path} must hold a tokenizer, but has none of {', '.join(_TOKENIZER_FILES)}.",
            hint=f"get the tokenizer of {base.id} and save it into the same folder",
        )
    with library_call(base):
        return AutoTokenizer.from_pretrained(base.path)


Side = Literal["left", "right"]


def max_positions(config: PretrainedConfig) -> int | None:
    """Return the tokens of the longest row that a base takes; None if its configuration does not say."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def padding_side(config: PretrainedConfig) -> Side:
    """Return the side on which rows of a base are padded: right, but left for heads like XLNet's."""
    return "left" if getattr(config, "summary_type", None) == "last" else "right"


# Names and habits of a configuration; whatever else it says may change numbers.
_NO_NUMBERS = {
    *("architectures", "transformers_version", "name_or_path", "tokenizer_class", "finetuning_task", "dtype"),
    *("torch_dtype", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params"),
    *("use_cache", "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward"),
}


def with_setup(base: BaseModel) -> BaseModel:
    """Return a base with its setup; unchanged where that is known.

    Raises:
        BaseModelError: tokenizer or configuration cannot be read.
    """
    if base.setup is not None:
        return base
    with library_call(base):
        config: dict[str, Any] = AutoConfig.from_pretrained(base.path).to_dict()
    digest = _digest(load_tokenizer(base)) if _has_tokenizer(base) else ""
    return replace(base, setup=BaseSetup(digest, dict(_numbers(config))))


def _digest(tokenizer: PreTrainedTokenizerBase) -> str:
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
