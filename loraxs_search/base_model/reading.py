"""What goes into a base and what tasks read of it: padded rows, the head's outputs, last hidden states, pools of them.

A base that was trained as a sentence encoder carries its meaning where it was pooled in training, which is often not
where its class reads. A forward hook on the body puts that pool, in float32, in the place of the pooler's output and
of every position of the last hidden states, so the head of any class reads it.

Dummy rows, and when two results count as the same, serve checks that another way computes the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from loraxs_search.base_model.layers import head_names, library_call, reads_from_left
from loraxs_search.base_model.tokenizer import Side, load_tokenizer, padding_side
from loraxs_search.records.codec import Pooling
from loraxs_search.records.task import BaseModel

_HOOK = "loraxs_pooling"  # an attribute of the body
_TRAINED: Mapping[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
Runs = Callable[[], Sequence[tuple[int, Pooling]]]


def resolved_pooling(pooling: Pooling, base: BaseModel) -> tuple[Pooling, str]:
    """Return the pooling that `auto` means on a base, and what is to be said of it; any other is returned as it is.

    It is the one that the base was trained with: sentence-transformers writes it into `modules.json` and the folder of
    its pooling module. Where there is none, or the base's class reads the same, as decoders read the last token, it is
    `class`, which other software knows too.
    """
    if pooling != "auto":
        return pooling, ""
    folder = Path(base.path)
    listed = folder / "modules.json"
    modules = json.loads(listed.read_bytes()) if listed.is_file() else []
    paths = [str(module["path"]) for module in modules if str(module["type"]).rpartition(".")[2] == "Pooling"]
    own = folder / paths[0] / "config.json" if paths else folder / "absent"
    pools = json.loads(own.read_bytes()) if own.is_file() else {}
    if mode := pools.get("pooling_mode"):
        names = [mode] if isinstance(mode, str) else list(mode)
    else:
        marked = [key for key, value in pools.items() if key.startswith("pooling_mode_") and value is True]
        names = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in marked]
    trained = _TRAINED.get(names[0]) if len(names) == 1 else None
    if trained is None:
        how = " and ".join(names)
        note = f"{base.id} was trained with pooling by {how}; heads read it as its class does" if names else ""
        return "class", note
    with library_call(base):
        config = AutoConfig.from_pretrained(base.path)
    reads = getattr(config, "classifier_pooling", None)  # ModernBERT's
    if reads is None and trained == "last" and reads_from_left(config):
        tokenizer = load_tokenizer(base)  # a decoder's class reads the token before it where texts end with padding's
        reads = None if tokenizer("a").input_ids[-1:] == [tokenizer.pad_token_id] else "last"
    return ("class" if reads == trained else trained), ""


class _Hook:
    """Replaces what leaves a body; has no state but its settings, so it may be copied with the body."""

    pooling: Pooling = "class"
    runs: Runs | None = None

    def __call__(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        states: Tensor = output.last_hidden_state  # (n, T, width)
        runs = [(states.shape[0], self.pooling)] if self.runs is None else self.runs()
        if all(pooling == "class" for _, pooling in runs):
            return None
        mask: Tensor | None = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        mask = states.new_ones(states.shape[:2]) if mask is None else mask
        exact = torch.promote_types(states.dtype, torch.float32)
        pooler: Tensor | None = output.get("pooler_output")  # (n, width)
        read, pooled, start = list[Tensor](), list[Tensor](), 0
        for num_rows, pooling in runs:
            rows = slice(start, start := start + num_rows)
            own = states[rows].to(exact)
            if pooling != "class":
                vectors = pool(own, mask[rows], pooling)
                own = vectors[:, None].expand_as(own)
            read.append(own)
            if pooler is not None:
                pooled.append(pooler[rows].to(exact) if pooling == "class" else vectors)
        for name, parts in (("last_hidden_state", read), ("pooler_output", pooled)):
            if parts:
                output[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return output


def pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one vector for each row, (n, width), of its real tokens' states.

    Args:
        states: Shape (n, T, width).
        mask: 1 at real tokens, (n, T), whichever side padding is on.
        pooling: `mean`, `cls` for the first token or `last` for the last one.
    """
    if pooling == "mean":
        weights = mask.to(states.dtype)[..., None]
        return (states * weights).sum(1) / weights.sum(1)
    num_rows, width = mask.shape  # of `len`, an exporter would make a constant
    columns = torch.arange(width, device=mask.device)
    from_end = mask * (columns + 1 if pooling == "last" else width - columns)
    return states[torch.arange(num_rows, device=states.device), from_end.argmax(1)]


def place_pooling(model: PreTrainedModel, pooling: Pooling, runs: Runs | None = None) -> None:
    """Have a base's head read this pool from now on; a second call replaces the first.

    Args:
        runs: Returns, in each pass, how many neighbouring rows are read in which way, in place of `pooling`.
    """
    assert pooling != "auto"  # of which base?
    body = cast("Any", model.base_model)
    hook = getattr(body, _HOOK, None)
    if hook is None:
        if pooling == "class" and runs is None:
            return
        hook = _Hook()
        setattr(body, _HOOK, hook)
        body.register_forward_hook(hook, with_kwargs=True)
    hook.pooling, hook.runs = pooling, runs


def pooling_of(model: PreTrainedModel) -> Pooling:
    """Return what a base's head reads."""
    hook: _Hook | None = getattr(model.base_model, _HOOK, None)
    return "class" if hook is None else hook.pooling


def joined(inputs: Sequence[Mapping[str, Tensor]], width: int, pad_id: int, side: Side) -> dict[str, Tensor]:
    """Return the inputs of several batches as those of one, its rows padded to `width` tokens.

    What some batches lack, such as numbers of segments, is zero in their rows, as models take it where it is missing.
    """
    fill = {"input_ids": pad_id}
    padded = []
    for part in inputs:
        more = width - part["input_ids"].shape[1]
        sides = (more, 0) if side == "left" else (0, more)
        padded.append({name: pad(v, sides, value=fill.get(name, 0)) if more else v for name, v in part.items()})
    if len(padded) == 1:
        return padded[0]
    zeros = [torch.zeros_like(part["input_ids"]) for part in padded]
    return {
        name: torch.cat([part.get(name, zero) for part, zero in zip(padded, zeros, strict=True)])
        for name in dict.fromkeys(chain.from_iterable(padded))
    }


_LENGTHS = (7, 5, 4)  # no multiple of a window that a base such as Longformer pads to by itself
# Relative. In half precision: larger than rounding, smaller than the effect of another input.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 1e-2


def dummy_inputs(model: PreTrainedModel, num_rows: int = 2, width: int = _LENGTHS[0]) -> dict[str, Tensor]:
    """Return inputs of rows of 7 tokens, 5 and 4, and padding: `input_ids` and `attention_mask`, (num_rows, width).

    No token is the padding; each row of an encoder-decoder ends with its end token, which its head reads.

    Raises:
        ValueError: short rows would change the model permanently, as with BigBird; or there is no padding token.
    """
    config, device = model.config, model.device
    if getattr(config, "attention_type", None) == "block_sparse":
        raise ValueError("`attention_type` must not be block_sparse: the first short row changes it.")
    if getattr(config, "pad_token_id", None) is None:
        raise ValueError("`pad_token_id` must be a token, but is None.")
    ends = getattr(config, "eos_token_id", None)
    special = {config.pad_token_id, *(ends if isinstance(ends, list) else [ends])}
    plain = [token for token in range(min(100, config.get_text_config().vocab_size)) if token not in special]
    rows = []
    for row, length in enumerate(_LENGTHS[:num_rows]):
        tokens = [plain[(_LENGTHS[0] * row + i) % len(plain)] for i in range(length)]
        if config.is_encoder_decoder:
            tokens[-1] = config.eos_token_id
        padding = [config.pad_token_id] * (width - length)
        rows.append([*padding, *tokens] if padding_side(config) == "left" else [*tokens, *padding])
    ids = torch.tensor(rows, device=device)
    return {"input_ids": ids, "attention_mask": (ids != config.pad_token_id).long()}


def end_with_eos(ids: Tensor, config: PretrainedConfig) -> Tensor:
    """Return dummy rows, shape (n, T), as an encoder-decoder's head takes them; unchanged for any other base.

    Such a head reads the state at the end token, so each row must have exactly one: here the last token.
    """
    if not config.is_encoder_decoder:
        return ids
    end = config.eos_token_id
    rows = ids.masked_fill(ids == end, (end + 1) % config.vocab_size)
    rows[:, -1] = end
    return rows


def rounding(model: PreTrainedModel) -> float:
    """Return the relative difference up to which two results count as the same, in the precision of the base."""
    return _TOLERANCES.get(model.dtype, _HALF_TOLERANCE)


def close_to(actual: Tensor, expected: Tensor, tolerance: float = _HALF_TOLERANCE) -> bool:
    """Return whether two results, of a row each, differ by rounding only: by `tolerance` of their norm.

    False where `expected` proves nothing: it is not finite, or its own rows differ by no more (a head of zeros).
    """
    if actual.shape != expected.shape:
        return False
    limit = tolerance * expected.norm()
    return bool((actual - expected).norm() <= limit < (expected - expected.flip(0)).norm())


def readable(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return all that a task may read of rows: the head's outputs; without a head, the hidden states of real tokens.

    Returns:
        Shape (n, outputs); with zeros at padding, (n, T, outputs) of a head that gives one a token, or (n, T, width).
    """
    read: Tensor = model(**inputs).logits if head_names(model) else last_states(model, inputs)
    return read if read.dim() == 2 else read * inputs["attention_mask"].unsqueeze(-1)


def last_states(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return what leaves the body, shape (n, T, width)."""
    states: Tensor = model.base_model(**inputs)[0]
    return states


class Projection:
    """Turns hidden states (..., width) into the base's own logits (..., vocabulary), float32, in one step or two.

    Some bases scale logits by a number of their configuration, or cap them by one.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._embedding = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._factor = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
        self._factor /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
        self._cap = getattr(config, "final_logit_softcapping", None)  # Gemma

    def __call__(self, states: Tensor) -> Tensor:
        return self.finish(self.embed(states))

    def embed(self, states: Tensor) -> Tensor:
        """Return the output embedding's own numbers, in the precision of the body."""
        embedded: Tensor = self._embedding(states)
        return embedded

    def finish(self, embedded: Tensor) -> Tensor:
        """Return the logits that they mean, float32."""
        logits = embedded.float()
        if self._factor != 1.0:
            logits = logits * self._factor
        return torch.tanh(logits / self._cap) * self._cap if self._cap else logits
