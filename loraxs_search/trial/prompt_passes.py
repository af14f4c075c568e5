"""Prompts on their way into a cache, before anything is written: in passes of like length, with little padding.

What the prompts of a group begin with is computed once for the group. Each pass has a cache of its own; they are joined
so that every row ends in the same column.

Letters: n rows, T tokens of each with padding, D the width of hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from loraxs_search.tasks.encoded import RUN_TOKENS, EncodedRows, Ragged, cheapest_runs
from loraxs_search.trial.decoding import Decoding
from loraxs_search.trial.shared_beginning import common_beginning, is_worth_beginning
from loraxs_search.trial.shared_prompts import padded

Indices = npt.NDArray[np.int64]
Computing = Callable[[Indices], AbstractContextManager[object]]
Prompts = Sequence[npt.NDArray[np.int32]]

_CPU_TOKENS = 4096  # of a pass; larger ones are no faster
# What one more pass costs on an accelerator, in tokens: a guess, as all that one row takes there is calls.
_DEVICE_RUN_TOKENS, _DEVICE_TOKENS = 4096, 65536


@torch.inference_mode()
def read_prompts(
    model: nn.Module, prompts: Prompts, groups: Indices | None, computing: Computing | None
) -> tuple[Decoding, Tensor]:
    """Compute the prompts of all rows; return the rows as they go on, and the last token's states, (n, D).

    Args:
        groups: The group of each row, (n,): those of one group stand side by side, and are computed alike. None where
            each row may be computed in its own way.
        computing: Entered around passes with the numbers of their rows, ascending.
    """
    device, every = next(model.parameters()).device, np.arange(len(prompts))
    begun, rest, group_of_n = None, list(prompts), every
    if groups is not None:
        begun, rest, group_of_n = _begun(Decoding(model), prompts, groups, computing, device)
    parts, states = list[Decoding](), list[Tensor]()
    runs = _runs(rest, device) if Decoding(model).can_be_joined else [every]
    for rows in runs:
        decoding = Decoding(model) if begun is None else begun.forked(torch.from_numpy(group_of_n[rows]).to(device))
        with computing(rows) if computing else nullcontext():
            states.append(decoding.compute(*_left_padded([rest[row] for row in rows], device))[:, -1])
        parts.append(decoding)
    order = torch.from_numpy(np.argsort(np.concatenate(runs))).to(device)
    return Decoding.joined(parts, [torch.from_numpy(rows).to(device) for rows in runs]), torch.cat(states)[order]


def _runs(prompts: Prompts, device: torch.device) -> list[Indices]:
    """Return the rows of each pass, ascending."""
    lengths = np.array([len(prompt) for prompt in prompts])
    order = np.argsort(-lengths, kind="stable")
    max_tokens, cost = (_CPU_TOKENS, RUN_TOKENS) if device.type == "cpu" else (_DEVICE_TOKENS, _DEVICE_RUN_TOKENS)
    return [np.sort(order[run]) for run in cheapest_runs(lengths[order].tolist(), max_tokens, cost)]


def _begun(
    decoding: Decoding, prompts: Prompts, groups: Indices, computing: Computing | None, device: torch.device
) -> tuple[Decoding | None, list[npt.NDArray[np.int32]], Indices]:
    """Compute what the prompts of each group begin with, where that is worth it.

    Returns:
        A row for each group, or None; what follows of each prompt; and the row that each goes on from, (n,).
    """
    _, first, group_of_n = np.unique(groups, return_index=True, return_inverse=True)
    own = [[prompts[i] for i in np.flatnonzero(group_of_n == group).tolist()] for group in range(len(first))]
    # What the last token gives is read, so that one follows.
    sizes = [min(common_beginning(rows), min(map(len, rows)) - 1) for rows in own]
    saved = sum(size * (len(rows) - 1) for size, rows in zip(sizes, own, strict=True))
    if not (decoding.allows_gaps and is_worth_beginning(sum(map(len, prompts)), saved)):
        return None, list(prompts), group_of_n
    order = np.argsort(first)  # groups as they stand
    with computing(first[order]) if computing else nullcontext():
        decoding.compute(*_left_padded([prompts[first[group]][: sizes[group]] for group in order], device))
    rest = [prompt[sizes[group] :] for prompt, group in zip(prompts, group_of_n.tolist(), strict=True)]
    return decoding, rest, np.argsort(order)[group_of_n]


def _left_padded(prompts: Prompts, device: torch.device) -> tuple[Tensor, Tensor]:
    return padded(EncodedRows(Ragged.of(prompts, np.int32)), "left", device)
