"""What of its last hidden states a base's head reads: what its class does, or one pool of each row.

A base that was trained as a sentence encoder carries its meaning where it was pooled in training, which is often not
where its class reads. A forward hook on the body puts that pool, in float32, in the place of the pooler's output and of
every position of the last hidden states, so the head of any class reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from loraxs_search.base_model.layers import reads_from_left
from loraxs_search.base_model.library import library_call
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.records.base import BaseModel
from loraxs_search.records.literals import Pooling

_HOOK = "loraxs_pooling"  # an attribute of the body
_TRAINED: Mapping[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
Runs = Callable[[], Sequence[tuple[int, Pooling]]]


def trained_pooling(base: BaseModel) -> tuple[Pooling, str]:
    """Return the pooling that a base was trained with, `class` where its folder names none, and what is to be said.

    sentence-transformers writes it into `modules.json` and the folder of its pooling module. Where the base's class
    reads the same, as decoders read the last token, it is `class`, which other software knows too.
    """
    names = _named_by_sentence_transformers(Path(base.path))
    pooling = _TRAINED.get(names[0]) if len(names) == 1 else None
    if pooling is None:
        how = " and ".join(names)
        note = f"{base.id} was trained with pooling by {how}; heads read it as its class does" if names else ""
        return "class", note
    with library_call(base):
        config = AutoConfig.from_pretrained(base.path)
    own = getattr(config, "classifier_pooling", None)  # ModernBERT's
    if own is None and pooling == "last" and reads_from_left(config):
        tokenizer = load_tokenizer(base)  # a decoder's class reads the token before it where texts end with padding's
        own = None if tokenizer("a").input_ids[-1:] == [tokenizer.pad_token_id] else "last"
    return ("class" if own == pooling else pooling), ""


def resolved_pooling(pooling: Pooling, base: BaseModel) -> Pooling:
    """Return the pooling that `auto` means on a base; any other is returned as it is."""
    return trained_pooling(base)[0] if pooling == "auto" else pooling


def _named_by_sentence_transformers(folder: Path) -> list[str]:
    """Return the names of the pools that a sentence encoder joins; none if the folder is no such encoder's."""
    modules = _read(folder / "modules.json")
    paths = [str(module["path"]) for module in modules or () if str(module["type"]).rpartition(".")[2] == "Pooling"]
    config = _read(folder / paths[0] / "config.json") if paths else None
    if config is None:
        return []
    if mode := config.get("pooling_mode"):
        return [mode] if isinstance(mode, str) else list(mode)
    marked = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    return [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in marked]


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.is_file() else None


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
        output["last_hidden_state"] = _joined(read)
        if pooler is not None:
            output["pooler_output"] = _joined(pooled)
        return output


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
