"""How many trials, and how many of their tokens, a device takes at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch

from loraxs_search.memory import free_bytes
from loraxs_search.methods import get_method
from loraxs_search.records import MAX_AUTO_PACK_SIZE, LargestTrial, LinearModule

log = logging.getLogger(__name__)

# Padded tokens of one pass beyond which a pass was no faster for being larger.
_CPU_TOKENS, _DEVICE_TOKENS = 3072, 65536
_MIN_TOKENS = 256
# Tokens of a pass that fill one worker of a CPU: from 8 trials of 16 rows of 27 tokens on two workers, a step took as
# long with 16, 32 and 64 (`bench_packing.py`).
_CPU_FULL_TOKENS = 1728
_MIN_GAIN = 1.1  # what twice the tokens must gain in tokens a second
_MEMORY_SHARE = 0.5  # of the free memory, since others use it too


def token_budget(modules: Iterable[LinearModule], dtype: torch.dtype, device: torch.device) -> int:
    """Return the padded tokens that one pass may have.

    What a pass keeps for backward is taken to be twice the input and output of every linear layer. That is a
    safe guess; a pass that runs out of memory nevertheless halves the budget and is computed again.
    """
    per_token = 2 * dtype.itemsize * sum(module.in_features + module.out_features for module in modules)
    limit = _CPU_TOKENS if device.type == "cpu" else _DEVICE_TOKENS
    return max(_MIN_TOKENS, min(limit, int(_MEMORY_SHARE * free_bytes(device) / per_token)))


def full_tokens(device: torch.device, max_tokens: int, time_pass: Callable[[int], float]) -> int:
    """Return the tokens of a pass that fill a device, or one worker of a CPU.

    A CPU's number is fixed. On an accelerator passes are timed, each of twice the tokens, until that gains less than a
    tenth.

    Args:
        time_pass: Returns the seconds that a pass of so many tokens takes.
    """
    if device.type == "cpu":
        return min(max_tokens, _CPU_FULL_TOKENS)
    tokens, seconds = _MIN_TOKENS, time_pass(_MIN_TOKENS)
    while 2 * tokens <= max_tokens:
        longer = time_pass(2 * tokens)
        if 2 * seconds < _MIN_GAIN * longer:
            break
        tokens, seconds = 2 * tokens, longer
    return tokens


def full_slots(tokens: int, num_workers: int, batch_tokens: float) -> int:
    """Return how many trials fill a device, at least one.

    Args:
        tokens: What fills one worker.
        batch_tokens: Real tokens of one trial's batch.
    """
    return max(1, min(MAX_AUTO_PACK_SIZE, round(num_workers * tokens / max(1.0, batch_tokens))))


def fitting_slots(wanted: int, slot_bytes: int, device: torch.device) -> int:
    """Return `wanted`, or with a warning the number of slots that the free memory holds, at least one."""
    fitting = max(1, int(_MEMORY_SHARE * free_bytes(device) / max(1, slot_bytes)))
    if fitting < wanted:
        log.warning(
            "pack_size is %d, but memory holds the state of %d trials only: %d are used", wanted, fitting, fitting
        )
    return min(wanted, fitting)


def slot_bytes(modules: Sequence[LinearModule], largest: LargestTrial, head_parameters: int, num_workers: int) -> int:
    """Return the memory of the largest slot outside activations, all of these modules being adapted."""
    methods = [(get_method(name), params) for name, params in largest.adapters]
    adapters = [method.slot_bytes(method.with_defaults(params), modules, num_workers) for method, params in methods]
    # Each of the head's numbers with its gradient and two moments; in the pack a gradient for each worker.
    return max(adapters, default=0) + 4 * head_parameters * (4 + num_workers)
