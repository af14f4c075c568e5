"""Load a located base model for a task, ready to carry adapters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from loraxs_search.base_model.layers import (
    HEAD_AS_LOADED,
    fresh_head,
    head_names,
    is_identity,
    keep_head_float32,
    library_call,
    loading_of,
    make_identity,
)
from loraxs_search.base_model.reading import (
    Projection,
    close_to,
    dummy_inputs,
    last_states,
    place_pooling,
    resolved_pooling,
    rounding,
)
from loraxs_search.base_model.tokenizer import pad_token_id
from loraxs_search.errors import BaseModelError, UsageError
from loraxs_search.records.codec import Precision
from loraxs_search.records.task import BaseModel, TaskModel


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


_CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the base's dtype: as asked, or for `auto` bfloat16 where the hardware multiplies it natively.

    Emulated bfloat16 is slower than float32 on every processor measured, so it is never chosen for a device
    without the instructions.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    return torch.bfloat16 if _has_bfloat16(device) else torch.float32


def exact_dtype(own: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype that holds a checkpoint's numbers, and that a device multiplies fast: `own`, or float32.

    A CPU that emulates a half precision takes eight times as long as in float32 (AVX2, bfloat16), for the same weights.
    """
    is_slow = own is torch.float16 or (own is torch.bfloat16 and not _has_bfloat16(device))
    return torch.float32 if device.type == "cpu" and is_slow else own


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere brought bf16 tensor cores
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not _CPU_BF16_FLAGS.isdisjoint(flags.split())


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
        dtype: Precision of the body; None means the checkpoint's own, or float32 where a CPU would emulate it. The
            model's config keeps the checkpoint's own.
    Raises:
        BaseModelError: the files are no such model, or lack weights of its body.
    """
    loader, config = loading_of(base, task_model)
    config.pad_token_id = pad_token_id(config, base)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # keys and values are for generation; here they would fill memory in each pass
    # "eager" was measured fastest on a CPU; elsewhere it is transformers' choice, "sdpa" where the model has it.
    attention = "eager" if torch.device(device).type == "cpu" else None
    model: PreTrainedModel
    with library_call(base), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model, info = loader.from_pretrained(
            base.path,
            config=config,
            dtype=dtype or "auto",
            attn_implementation=attention,
            ignore_mismatched_sizes=True,  # a checkpoint's head may be for other labels; the body is checked after
            output_loading_info=True,
        )
    if dtype is None:
        cast("nn.Module", model).to(exact_dtype(model.dtype, torch.device(device)))
    missing = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    heads = head_names(model)
    poolers = {name for name in missing if _is_body_pooler(name, heads)}  # BERT's, which many checkpoints lack
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
    linear = tuple(f"{name}." for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
    own = ((f"{top}.{n}", p) for top in heads for n, p in getattr(model, top).named_parameters())
    kept = {name: p.detach().float().cpu().clone() for name, p in own if not name.startswith(linear)}
    setattr(model, HEAD_AS_LOADED, kept)
    place_pooling(model, resolved_pooling(task_model.pooling, base)[0])
    cast("nn.Module", model).to(device).eval()  # in place; transformers' decorator hides what `to` takes
    if task_model.num_outputs is None:
        _check_projection(model)
    return model


def bare_body(model: PreTrainedModel) -> nn.Module:
    """Return a copy of a base's modules on the same weights: adapters put on `model` are not in it."""
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    body: nn.Module = copy.deepcopy(model.base_model, tensors)
    place_pooling(cast("PreTrainedModel", body), "class")  # what a head reads is no matter here
    return body


def missing_poolers(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the body's pooling layers that its checkpoint lacks: `load_model` made them the identity."""
    heads = head_names(model)
    return tuple(name for name, layer in model.named_modules() if _is_body_pooler(name, heads) and is_identity(layer))


def _is_body_pooler(name: str, heads: Sequence[str]) -> bool:
    """Return whether a module or parameter of this name belongs to a pooler inside the body, such as BERT's."""
    top, *rest = name.split(".")
    return top not in heads and "pooler" in rest


@torch.no_grad()
def _check_projection(model: PreTrainedModel) -> None:
    """Refuse a base without a head whose logits are not `Projection` of its last hidden states.

    Raises:
        BaseModelError: it scales, caps or shifts them in its own way.
    """
    inputs = dummy_inputs(model)
    real = inputs["attention_mask"].bool()
    expected, actual = model(**inputs).logits.float(), Projection(model)(last_states(model, inputs))
    if not close_to(actual[real], expected[real], rounding(model)):
        raise BaseModelError(
            "Logits of a base without a head must be its output embedding's, scaled by `logit_scale` or"
            " `logits_scaling` or capped by `final_logit_softcapping` at most, but"
            f" {type(model).__name__} makes them in another way.",
            hint="use another base for this task",
        )
