"""What rows begin with alike is computed once: its keys and values serve all that continue it.

Rows may name prompts that they share. What all rows begin with, such as worked examples or an instruction, is seen in
their tokens, so those who make rows need not say it.

Letters: n rows, G prompts, P tokens of a prompt, T tokens behind it, M reads, D the width of hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loraxs_search.engine.kv_cache import Decoding
from loraxs_search.engine.passes import AdaptedBase
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds import PassOutputs

Indices = npt.NDArray[np.int64]
# What whole rows may take in tokens of what shared prompts take, and still be computed whole: prompts are copied for
# each row, and take their own pass.
_WORTH = 1.25
_NO_PROMPT = Ragged.of([[]], np.int32)  # without tokens, for rows that have none


def is_worth_sharing(source: EncodedRows, rows: Indices) -> bool:
    """Return whether these rows are computed faster with shared prompts than whole; False where they share none."""
    if source.prompts is None or source.prompt_of is None:
        return False
    whole = source.lengths[rows].sum() + source.prompts.lengths[source.prompt_of[rows]].sum()
    return bool(whole > _WORTH * sum(tokens for tokens, _ in prompt_groups(source, rows)))


def prompt_groups(source: EncodedRows, rows: Indices) -> list[tuple[int, Indices]]:
    """Return of each prompt its tokens and those of what follows it, and the places in `rows` that continue it.

    Rows without prompts are each by themselves.
    """
    if source.prompts is None or source.prompt_of is None:
        return [(int(tokens), np.array([place])) for place, tokens in enumerate(source.lengths[rows])]
    prompt_of_n = source.prompt_of[rows]
    order = np.argsort(prompt_of_n, kind="stable")
    edges = np.flatnonzero(np.diff(prompt_of_n[order])) + 1
    groups = np.split(order, edges)
    lengths, before = source.lengths[rows], source.prompts.lengths
    return [(int(before[prompt_of_n[own[0]]] + lengths[own].sum()), own) for own in groups]


@torch.inference_mode()
def read_shared(
    base: AdaptedBase,
    parts: Sequence[EncodedRows],
    owners: Sequence[int],
    worker: int = 0,
    begun: Decoding | None = None,
) -> list[PassOutputs]:
    """Compute rows behind their prompts; return what is read of the rows of each part.

    Args:
        base: A base without a head.
        parts: Rows with positions, those of one prompt side by side; prompts are shared within a part.
        owners: Whose adapter the rows of each part have.
        begun: One row that all prompts continue from, or all rows if there is none; it is not changed. Prompts
            continue only from one that allows gaps.
    """
    device, owner_of_part = base.device, np.array(owners)
    prompts, part_of_G, prompt_of_n = _prompts(parts)
    part_of_n = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    has_prompts = bool(prompts.lengths.max())
    first = part_of_G if has_prompts else part_of_n
    decoding = Decoding(base.model) if begun is None else begun.forked(np.zeros(len(first), np.int64))
    if has_prompts:
        with base.computing_whole(base.row_map(owner_of_part[part_of_G]), worker):
            decoding.compute(*padded(prompts, "left", device))
        decoding.select(prompt_of_n)
    tails = EncodedRows(Ragged.of([part.ids.row(i) for part in parts for i in range(len(part))], np.int32))
    with base.computing_whole(base.row_map(owner_of_part[part_of_n]), worker):
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


def is_worth_beginning(whole: int, saved: int) -> bool:
    """Return whether so many tokens are computed faster without those that are saved, in a pass more."""
    return whole > _WORTH * (whole - saved)


def common_beginning(rows: Sequence[npt.NDArray[np.int32]]) -> int:
    """Return with how many equal tokens all rows begin."""
    first, size = rows[0], min(map(len, rows))
    for row in rows[1:]:
        differing = np.flatnonzero(row[:size] != first[:size])
        if len(differing):
            size = int(differing[0])
    return size


@torch.inference_mode()
def begun_alike(base: AdaptedBase, owner: int, rows: EncodedRows) -> tuple[Decoding | None, EncodedRows]:
    """Compute what all rows begin with, where that is worth it; return it, and what follows of each row."""
    size = beginning_of(rows)
    decoding = Decoding(base.model) if size else None
    if decoding is None or (rows.prompts is not None and not decoding.allows_gaps):
        return None, rows
    first = (
        rows.ids.row(0) if rows.prompts is None or rows.prompt_of is None else rows.prompts.row(int(rows.prompt_of[0]))
    )
    ids = torch.from_numpy(first[:size].astype(np.int64))
    with base.computing_whole(base.row_map(np.array([owner]))):
        decoding.compute(ids[None].to(base.device), torch.ones(1, size, dtype=torch.int64, device=base.device))
    rest = rows.behind(size)
    return decoding, rest if is_worth_sharing(rest, np.arange(len(rest))) else rest.with_prompts()


def beginning_of(rows: EncodedRows) -> int:
    """Return with how many equal tokens all rows begin, if it is worth computing them apart; else 0.

    Nothing is read of them: at least the first token that is read follows in each row, or a prompt's rows.
    """
    if rows.positions is None or len(rows) < 2:  # a head reads whole rows
        return 0
    if rows.prompts is None or rows.prompt_of is None:
        size = int(rows.positions.values[rows.positions.starts].min())
        size = common_beginning([rows.ids.row(i)[:size] for i in range(len(rows))])
        whole, count = int(rows.lengths.sum()), len(rows)
    else:
        used = np.unique(rows.prompt_of).tolist()
        size = common_beginning([rows.prompts.row(i) for i in used])
        whole, count = sum(tokens for tokens, _ in prompt_groups(rows, np.arange(len(rows)))), len(used)
    return size if is_worth_beginning(whole, size * (count - 1)) else 0
