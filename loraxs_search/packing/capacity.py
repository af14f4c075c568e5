"""How many trials, and how many of their tokens, a device takes at once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch

from loraxs_search.memory import available_bytes
from loraxs_search.records import MAX_AUTO_PACK_SIZE, LinearModule

log = logging.getLogger(__name__)

# Padded tokens of one pass beyond which a pass was no faster for being larger.
_CPU_TOKENS, _DEVICE_TOKENS = 3072, 65536
_LEAST_TOKENS = 256
_SHARE = 0.5  # of the free memory, since others use it too


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that nobody uses now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()


def token_budget(modules: Iterable[LinearModule], dtype: torch.dtype, device: torch.device) -> int:
    """Return the padded tokens that one pass may have.

    What a pass keeps for backward is taken to be twice the input and output of every linear layer. That is a guess on
    the safe side; a pass that runs out of memory all the same halves the budget and is done again.
    """
    per_token = 2 * dtype.itemsize * sum(module.in_features + module.out_features for module in modules)
    most = _CPU_TOKENS if device.type == "cpu" else _DEVICE_TOKENS
    return max(_LEAST_TOKENS, min(most, int(_SHARE * free_bytes(device) / per_token)))


def suitable_slots(max_tokens: int, lanes: int, batch_tokens: float) -> int:
    """Return how many trials fill all lanes with one pass each, at least one.

    Args:
        batch_tokens: Real tokens of one trial's batch.
    """
    return max(1, min(MAX_AUTO_PACK_SIZE, round(lanes * max_tokens / max(1.0, batch_tokens))))


def fitting_slots(wanted: int, slot_bytes: int, device: torch.device) -> int:
    """Return `wanted`, or with a warning the number of slots that the free memory holds, at least one."""
    fit = max(1, int(_SHARE * free_bytes(device) / max(1, slot_bytes)))
    if fit < wanted:
        log.warning("pack_size is %d, but memory holds the state of %d trials only: %d it is", wanted, fit, fit)
    return min(wanted, fit)


def slot_bytes(modules: Sequence[LinearModule], rank: int, head_parameters: int, lanes: int) -> int:
    """Return the memory of one slot outside activations: R and head with gradient and moments, and R's place in C."""
    # Each with its gradient and two moments; exact, rounded and a gradient for each lane in the pack.
    num_r = rank * rank * len(modules)
    return 4 * (num_r * (4 + 2 + lanes) + head_parameters * (4 + lanes))
