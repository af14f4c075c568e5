"""Load a located base model for a task, ready to carry adapters; and how it is set up beside its weights.

The setup is its tokenizer, and what its configuration says of the numbers.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from loraxs_search.base_model._library import library_call
from loraxs_search.base_model.head import fresh_head, head_names, is_body_pooler, keep_head_float32, make_identity
from loraxs_search.base_model.layers import auto_class, task_config
from loraxs_search.base_model.pooling import place_pooling, resolved_pooling
from loraxs_search.base_model.reading import check_projection, padding_side
from loraxs_search.errors import BaseModelError
from loraxs_search.records import BaseModel, BaseSetup, TaskModel

_UNLIMITED = 10**9  # tokenizers without a limit of their own say 1e30
_TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "tekken.json")


def load_model(
    base: BaseModel,
    task_model: TaskModel,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    attention: str | None = None,
) -> PreTrainedModel:
    """Load a base model as a task needs it: frozen, in evaluation mode, without messages.

    Head parameters missing from the checkpoint are drawn from a fixed seed, so that two loads are equal. A missing
    pooler is made the identity: drawn at random, it would differ wherever an adapter is loaded.
    The head stays float32 whatever `dtype` is, and casts its own input.

    Args:
        dtype: Precision of the body; None means the checkpoint's own.
        attention: Attention implementation; None means "eager" on CPU (measured fastest there) and elsewhere
            transformers' own choice, "sdpa" where the model has it.
    Raises:
        BaseModelError: the files are no such model, or lack weights of its body.
    """
    config = task_config(base, task_model)
    config.pad_token_id = _pad_token_id(config, base)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # keys and values are for generation; here they would fill memory in each pass
    if attention is None and torch.device(device).type == "cpu":
        attention = "eager"
    model, missing = _from_files(base, task_model, config, dtype, attention)
    _check_body(base, model, missing)
    make_identity(model, _poolers(model, missing))
    model.requires_grad_(False)
    keep_head_float32(model)
    _fill_head(model, missing)
    place_pooling(model, resolved_pooling(task_model.pooling, base))
    cast("nn.Module", model).to(device).eval()  # in place; transformers' decorator hides what `to` takes
    if task_model.num_outputs is None:
        check_projection(model)
    return model


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """Load a base model's tokenizer, set to pad with the model's token and on the model's side.

    Decoders often name no token: they pad with the tokenizer's own, else with the end-of-text token. A tokenizer
    without a limit of its own gets that of the model's positions.

    Raises:
        BaseModelError: there is no tokenizer in the folder, or no token to pad with.
    """
    tokenizer = _tokenizer(base)
    with library_call(base):
        config = AutoConfig.from_pretrained(base.path)
    pad_id = _valid(config.pad_token_id, config)
    if pad_id is None:
        pad_id = _pad_of(tokenizer, base)
    if tokenizer.pad_token_id != pad_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    tokenizer.padding_side = padding_side(config)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if tokenizer.model_max_length >= _UNLIMITED and isinstance(positions, int) and positions > 0:
        tokenizer.model_max_length = positions
    return tokenizer


def _has_tokenizer(base: BaseModel) -> bool:
    """Whether a base's folder holds a tokenizer."""
    return any(file for pattern in _TOKENIZER_FILES for file in Path(base.path).glob(pattern))


def _from_files(
    base: BaseModel, task_model: TaskModel, config: PretrainedConfig, dtype: torch.dtype | None, attention: str | None
) -> tuple[PreTrainedModel, set[str]]:
    """Return the model and the names of its parameters that the files lack or have in another shape."""
    with library_call(base), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model, info = auto_class(task_model).from_pretrained(
            base.path,
            config=config,
            dtype=dtype or "auto",
            attn_implementation=attention,
            ignore_mismatched_sizes=True,  # a checkpoint's head may be for other labels; the body is checked after
            output_loading_info=True,
        )
    return model, {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def _check_body(base: BaseModel, model: PreTrainedModel, missing: set[str]) -> None:
    """Refuse a body with random weights, except for BERT's pooler: many checkpoints lack it."""
    heads = head_names(model)
    body = sorted(name for name in missing if name.split(".")[0] not in heads and not is_body_pooler(name, heads))
    if body:
        raise BaseModelError(
            f"The weights of {base.id} must cover its body, but {len(body)} parameters are missing or of another shape,"
            f" the first being {body[0]}.",
            hint=f"check that config.json and the weights in {base.path} belong together",
        )


def _poolers(model: PreTrainedModel, missing: set[str]) -> list[str]:
    heads = head_names(model)
    return sorted({name.rpartition(".")[0] for name in missing if is_body_pooler(name, heads)})


def _fill_head(model: PreTrainedModel, missing: set[str]) -> None:
    """Draw the head's missing parameters in float32: in the body's precision the numbers would differ."""
    drawn = {name: value for name, value in fresh_head(model, 0).items() if name in missing}
    model.load_state_dict(drawn, strict=False)


def _pad_token_id(config: PretrainedConfig, base: BaseModel) -> int:
    pad_id = _valid(config.pad_token_id, config)
    return pad_id if pad_id is not None else _pad_of(_tokenizer(base), base)


def _valid(pad_id: object, config: PretrainedConfig) -> int | None:
    """Return a configured padding id if it is a token; some configurations have -1."""
    size = config.get_text_config().vocab_size
    return pad_id if isinstance(pad_id, int) and 0 <= pad_id < size else None


def _pad_of(tokenizer: PreTrainedTokenizerBase, base: BaseModel) -> int:
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
    tokenizer = tokenizer_digest(load_tokenizer(base)) if _has_tokenizer(base) else ""
    return replace(base, setup=BaseSetup(tokenizer, dict(_numbers(config))))


def bare_body(model: PreTrainedModel) -> nn.Module:
    """Return a copy of a base's modules on the same weights: adapters put on `model` are not in it."""
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    body: nn.Module = copy.deepcopy(model.base_model, tensors)
    place_pooling(cast("PreTrainedModel", body), "class")  # what a head reads is no matter here
    return body


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
