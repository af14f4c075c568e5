"""Writing: the loop that continues prompts token by token, with a cache, until each row has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from loraxs_search.tasks.kinds import Write, Written
from loraxs_search.tasks.tokens import end_ids
from loraxs_search.trial.decoding import base_of
from loraxs_search.trial.open_row import OpenRow, written
from loraxs_search.trial.prompt_passes import Computing, Indices, read_prompts
from loraxs_search.trial.sampling import two_largest

CPU_ROWS, DEVICE_ROWS = 64, 256  # of a batch
MAX_TOKENS = 32768  # of a batch, prompts and what may be written
OnText = Callable[[int, str], None]


def write(
    model: nn.Module,
    request: Write,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_rows: int | None = None,
    on_text: OnText | None = None,
) -> Written:
    """Continue the prompts of a request, batch by batch.

    Args:
        model: A base without a head, with or without an adapter on it.
        max_rows: Rows of a batch; what suits the device unless given.
        on_text: Called with a row's number in the request and each piece of its text, as it is written.
    """
    rows = open_rows(request, tokenizer, model, on_text)
    device = next(model.parameters()).device
    lengths = np.array([row.max_length for row in rows])
    for batch in writing_batches(lengths, max_rows or default_rows(device)):
        write_rows(model, [rows[i] for i in batch.tolist()])
    return written(rows)


def default_rows(device: torch.device) -> int:
    """Return how many rows a batch may have."""
    return CPU_ROWS if device.type == "cpu" else DEVICE_ROWS


def open_rows(
    request: Write, tokenizer: PreTrainedTokenizerBase, model: nn.Module, on_text: OnText | None = None
) -> list[OpenRow]:
    """Return the rows of a request with nothing written."""
    ends = {*end_ids(tokenizer, base_of(model).generation_config), *request.ends}
    listeners = [partial(on_text, number) if on_text else None for number in range(len(request.rows))]
    return [OpenRow(request, number, tokenizer, ends, listener) for number, listener in enumerate(listeners)]


def writing_batches(lengths: Indices, max_rows: int, num_workers: int = 1) -> list[Indices]:
    """Plan batches: every row exactly once, longest first, as few as may be, and as even as may be.

    Args:
        lengths: Tokens that each row may have in the end, (n,).
        max_rows: No batch has more rows; nor more padded tokens than `MAX_TOKENS`, unless it is one row.
        num_workers: Batches that are written side by side: none of these workers is left without rows.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[Indices] = []
    start = 0
    while start < len(order):
        num_left = len(order) - start
        fitting = max(1, min(max_rows, MAX_TOKENS // int(lengths[order[start]])))
        num_batches = max(-(-num_left // fitting), num_workers - len(batches))
        size = -(-num_left // num_batches)
        batches.append(order[start : start + size])
        start += size
    return batches


@torch.inference_mode()
def write_rows(
    model: nn.Module, rows: Sequence[OpenRow], computing: Computing | None = None, *, groups: Indices | None = None
) -> None:
    """Continue the rows of one batch until each has ended.

    Args:
        computing: Entered around passes with the numbers of the rows that are left, in the order of these passes.
        groups: The group of each row, (n,), such as its slot: those of one group stand side by side, and go on so,
            in whatever order is quickest; what their prompts begin with alike is computed once. Without, rows keep
            their order.
    """
    if computing is None:
        groups = np.zeros(len(rows), np.int64)
    for row in rows:
        row.begin()
    left = np.arange(len(rows))
    decoding, states_nD = read_prompts(model, [row.prompt for row in rows], groups, computing)
    tokens_n, stays = _next_tokens(decoding.project(states_nD), rows)
    while stays.any():
        if not stays.all():
            order = np.flatnonzero(stays) if groups is None else closed_up(stays, groups[left])
            decoding.select(torch.from_numpy(order).to(states_nD.device))
            left, tokens_n = left[order], tokens_n[order]
        own, stays = [rows[i] for i in left.tolist()], np.ones(len(left), bool)
        with computing(left) if computing else nullcontext():
            while stays.all():
                tokens_n, stays = _next_tokens(decoding.project(decoding.follow(tokens_n)), own)


def closed_up(stays: npt.NDArray[np.bool_], groups: Indices) -> Indices:
    """Return which row stands where once others have left: groups side by side, and few rows in another place.

    A cache copies the rows that move, and no others.

    Args:
        stays: Which rows go on, (n,).
        groups: The group of each row, (n,).
    """
    order = np.empty(int(stays.sum()), np.int64)
    start = 0
    for group in dict.fromkeys(groups.tolist()):
        own = np.flatnonzero(stays & (groups == group))
        places = np.arange(start, start + len(own))
        kept = np.intersect1d(own, places)
        order[kept] = kept
        order[np.setdiff1d(places, kept)] = np.setdiff1d(own, kept)
        start += len(own)
    return order


def _next_tokens(logits_nV: Tensor, rows: Sequence[OpenRow]) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Give each row its next token; return these, (n,) int64, and which rows go on, (n,) bool."""
    likeliest_n, margins_n = two_largest(logits_nV)
    tokens, margins = likeliest_n.tolist(), margins_n.tolist()
    for i, row in enumerate(rows):
        if row.samples and not np.isnan(margins[i]):
            tokens[i] = row.drawn(logits_nV[i])
    stays = [row.add(token, margin) for row, token, margin in zip(rows, tokens, margins, strict=True)]
    return np.array(tokens, np.int64), np.array(stays, bool)
