"""Rows that continue shared prompts: each prompt is computed once, and its keys and values serve all that continue it.

Letters: n rows, G prompts, P tokens of a prompt, T tokens behind it, M reads, D the width of hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds import PassOutputs
from loraxs_search.trial.decoding import Decoding

Indices = npt.NDArray[np.int64]
# What whole rows may take in tokens of what shared prompts take, and still be computed whole: prompts are copied for
# each row, and take a pass of their own.
_WORTH = 1.25
_NO_PROMPT = Ragged.of([[]], np.int32)  # without tokens, for rows that have none


def is_worth_sharing(source: EncodedRows, rows: Indices) -> bool:
    """Return whether these rows are computed faster with shared prompts than whole; False where they share none."""
    if source.prompts is None or source.prompt_of is None:
        return False
    whole = source.lengths[rows].sum() + source.prompts.lengths[source.prompt_of[rows]].sum()
    return bool(whole > _WORTH * sum(tokens for tokens, _ in prompt_groups(source, rows)))


def prompt_groups(source: EncodedRows, rows: Indices) -> list[tuple[int, Indices]]:
    """Return of each prompt its tokens and those of what follows it, and the places in `rows` that continue it."""
    assert source.prompts is not None and source.prompt_of is not None
    prompt_of_n = source.prompt_of[rows]
    order = np.argsort(prompt_of_n, kind="stable")
    edges = np.flatnonzero(np.diff(prompt_of_n[order])) + 1
    groups = np.split(order, edges)
    lengths, before = source.lengths[rows], source.prompts.lengths
    return [(int(before[prompt_of_n[own[0]]] + lengths[own].sum()), own) for own in groups]


@torch.inference_mode()
def read_shared(
    model: nn.Module,
    parts: Sequence[EncodedRows],
    computing: Callable[[Indices], AbstractContextManager[object]] | None = None,
    begun: Decoding | None = None,
) -> list[PassOutputs]:
    """Compute rows behind their prompts; return what is read of the rows of each part.

    Args:
        model: A base without a head, with or without adapters on it.
        parts: Rows with positions, those of one prompt side by side; prompts are shared within a part.
        computing: Entered around each pass with the number of the part that each of its rows is of.
        begun: One row that all prompts go on from, or all rows where there are none; it stays as it is. Prompts go on
            from one that allows gaps alone.
    """
    device = next(model.parameters()).device
    enter = computing or (lambda _: nullcontext())
    prompts, part_of_G, prompt_of_n = _prompts(parts)
    part_of_n = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    has_prompts = bool(prompts.lengths.max())
    first = part_of_G if has_prompts else part_of_n
    decoding = Decoding(model) if begun is None else begun.forked(torch.zeros(len(first), dtype=torch.long).to(device))
    if has_prompts:
        with enter(part_of_G):
            decoding.compute(*padded(prompts, "left", device))
        decoding.select(torch.from_numpy(prompt_of_n).to(device))
    tails = EncodedRows(Ragged.of([part.ids.row(i) for part in parts for i in range(len(part))], np.int32))
    with enter(part_of_n):
        states_nTD = decoding.compute(*padded(tails, "right", device))
    outputs, start = [], 0
    for part in parts:
        reads = part.reads(np.arange(len(part)))
        assert reads is not None  # a head reads whole rows
        at = torch.from_numpy(reads).to(device)
        outputs.append(PassOutputs(states_nTD[start + at[:, 0], at[:, 1]], decoding.project))
        start += len(part)
    return outputs


def _prompts(parts: Sequence[EncodedRows]) -> tuple[EncodedRows, Indices, Indices]:
    """Return the prompts of all parts, (G,), of which part each is, and which of them each row continues, (n,)."""
    ids, part_of_G, prompt_of_n = list[npt.NDArray[np.int32]](), list[int](), list[Indices]()
    for number, part in enumerate(parts):
        if part.prompts is None or part.prompt_of is None:
            used, own, prompts = np.zeros(1, np.int64), np.zeros(len(part), np.int64), _NO_PROMPT
        else:
            used, own = np.unique(part.prompt_of, return_inverse=True)
            prompts = part.prompts
        prompt_of_n.append(own + len(ids))
        ids += [prompts.row(i) for i in used.tolist()]
        part_of_G += [number] * len(used)
    return EncodedRows(Ragged.of(ids, np.int32)), np.array(part_of_G), np.concatenate(prompt_of_n)


def padded(rows: EncodedRows, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, (n, T) int64; any id will do as padding."""
    inputs = rows.padded(np.arange(len(rows)), 0, side)
    return torch.from_numpy(inputs["input_ids"]).to(device), torch.from_numpy(inputs["attention_mask"]).to(device)
