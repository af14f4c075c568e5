"""Load a located base model for a task, ready to carry adapters; and how it is set up beside its weights.

The setup is its tokenizer, and what its configuration says of the numbers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from loraxs_search.base_model.layers import (
    auto_class,
    fresh_head,
    head_names,
    is_body_pooler,
    keep_head_float32,
    library_call,
    make_identity,
    remember_head,
    task_config,
)
from loraxs_search.base_model.reading import check_projection, place_pooling, resolved_pooling
from loraxs_search.base_model.tokenizer import has_tokenizer, load_tokenizer, pad_token_id, tokenizer_digest
from loraxs_search.errors import BaseModelError, UsageError
from loraxs_search.records.base import BaseModel, BaseSetup
from loraxs_search.records.task import TaskModel


def checked_device(name: torch.device | str) -> torch.device:
    """Return a device that this process can compute on.

    Raises:
        UsageError: there is none of this name, or this torch was built without it.
    """
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # the former from a torch without CUDA
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"`device` must be one that torch finds here, such as cpu or cuda:0, but got {str(name)!r}: {reason}",
            hint="leave it out to compute on the CPU; `python -m torch.utils.collect_env` shows what torch finds",
        ) from error
    return torch.device(name)


def load_model(
    base: BaseModel,
    task_model: TaskModel,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """Load a base model as a task needs it: frozen, in evaluation mode, without messages.

    Head parameters missing from the checkpoint are drawn from a fixed seed, so that two loads are equal. A missing
    pooler is made the identity: drawn at random, it would differ wherever an adapter is loaded.
    The head stays float32 whatever `dtype` is, and casts its own input.

    Args:
        dtype: Precision of the body; None means the checkpoint's own.
    Raises:
        BaseModelError: the files are no such model, or lack weights of its body.
    """
    config = task_config(base, task_model)
    config.pad_token_id = pad_token_id(config, base)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # keys and values are for generation; here they would fill memory in each pass
    # "eager" was measured fastest on a CPU; elsewhere it is transformers' choice, "sdpa" where the model has it.
    attention = "eager" if torch.device(device).type == "cpu" else None
    model: PreTrainedModel
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
    missing = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    heads = head_names(model)
    poolers = {name for name in missing if is_body_pooler(name, heads)}  # BERT's, which many checkpoints lack
    if body := sorted(name for name in missing - poolers if name.split(".")[0] not in heads):
        raise BaseModelError(
            f"The weights of {base.id} must cover its body, but {len(body)} parameters are missing or of another shape,"
            f" the first being {body[0]}.",
            hint=f"check that config.json and the weights in {base.path} belong together",
        )
    make_identity(model, sorted({name.rpartition(".")[0] for name in poolers}))
    model.requires_grad_(False)
    keep_head_float32(model)
    # Drawn in float32: in the body's precision the numbers would differ.
    drawn = {name: value for name, value in fresh_head(model, 0).items() if name in missing}
    model.load_state_dict(drawn, strict=False)
    remember_head(model)
    place_pooling(model, resolved_pooling(task_model.pooling, base))
    cast("nn.Module", model).to(device).eval()  # in place; transformers' decorator hides what `to` takes
    if task_model.num_outputs is None:
        check_projection(model)
    return model


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
    tokenizer = tokenizer_digest(load_tokenizer(base)) if has_tokenizer(base) else ""
    return replace(base, setup=BaseSetup(tokenizer, dict(_numbers(config))))


def bare_body(model: PreTrainedModel) -> nn.Module:
    """Return a copy of a base's modules on the same weights: adapters put on `model` are not in it."""
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    body: nn.Module = copy.deepcopy(model.base_model, tensors)
    place_pooling(cast("PreTrainedModel", body), "class")  # what a head reads is no matter here
    return body


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
