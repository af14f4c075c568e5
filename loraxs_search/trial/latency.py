"""What an adapter costs in time: a batch with it against the same batch through the bare base."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from loraxs_search.adapter import load_adapter_folder
from loraxs_search.adapter.loading import read_manifest
from loraxs_search.base_model import load_model, load_tokenizer, locate
from loraxs_search.errors import LoraxsError
from loraxs_search.records import Latency

_ROWS, _TOKENS = 8, 64
_WARMUP, _MIN_ROUNDS, _MAX_ROUNDS = 2, 5, 25
_BUDGET_S = 10.0


def measure_latency(folder: Path) -> Latency:
    """Time a batch with an adapter, as `load_adapter` returns it, and with the bare base, on this machine's CPU.

    Both take turns, so that what else the machine does meets both; the shortest time of each is the one least
    disturbed. 25 rounds, or fewer where they take longer than 10 s in all. What goes wrong is in the result.
    """
    try:
        return _measure(folder)
    except LoraxsError as error:
        return Latency(failed=error.message)


def _measure(folder: Path) -> Latency:
    manifest = read_manifest(folder)
    base = locate(manifest.base_model)
    adapted = load_adapter_folder(folder, base=base)
    bare = load_model(base, manifest.task.kind, len(manifest.task.labels) or 1)
    draw = torch.Generator().manual_seed(0)
    num_tokens = min(_TOKENS, manifest.task.max_length, load_tokenizer(base).model_max_length)
    ids = torch.randint(bare.config.vocab_size, (_ROWS, num_tokens), generator=draw)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        with_adapter, without = _in_turn(lambda: adapted(**inputs), lambda: bare(**inputs))
    return Latency(min(with_adapter) / min(without), _ROWS, num_tokens, len(without))


def _in_turn(first: Callable[[], object], second: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Return the seconds of each, round by round; who begins changes from round to round."""
    found: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    for number in range(-_WARMUP, _MAX_ROUNDS):
        if number >= _MIN_ROUNDS and time.perf_counter() - started > _BUDGET_S:
            break
        for which in (0, 1) if number % 2 else (1, 0):
            begun = time.perf_counter()
            (first, second)[which]()
            if number >= 0:
                found[which].append(time.perf_counter() - begun)
    return found
