"""Rows of many adapters in one batch, and what comes out of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from loraxs_search.bank.adapter_store import Part
from loraxs_search.bank.bank_model import BankModel
from loraxs_search.bank.stored_rows import StoredRows
from loraxs_search.multiplexed import RowSegment
from loraxs_search.tasks.encoded import EncodedRows, Indices
from loraxs_search.tasks.kinds import PassOutputs
from loraxs_search.trial.generate import write_rows
from loraxs_search.trial.open_row import OpenRow
from loraxs_search.trial.shared_prompts import read_shared

Owners = Sequence[int]  # of each row of a batch, which of the questions its adapter is that of


class BankRows:
    """The adapters of some questions, taken out of the bank: it may lose them meanwhile.

    Args:
        parts: Of these questions, each row of which is a question.
    """

    def __init__(self, model: BankModel, parts: Sequence[Part]) -> None:
        self.model, self._parts = model, parts

    @property
    def device(self) -> torch.device:
        """The device of the base."""
        return self.model.device

    def logits(self, owners: Owners | None, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return each row's logits, float32: its head's (labels,), or those after its last token (vocabulary,).

        Args:
            owners: None where the rows are the questions themselves.
        """
        parts = self._parts if owners is None else parts_of(self._parts, owners)
        order = torch.tensor([row for part in parts for row in part.rows])
        mine = {name: value[order].to(self.device) for name, value in inputs.items()}
        if self.model.has_head:
            lines = self.model.run(mine, None, self._segments(parts)).read
            widths = [self.model.num_labels(part.layout) for part in parts for _ in part.rows]
        else:
            mask = mine.get("attention_mask")  # models take rows without one whole
            last = _last_tokens(torch.ones_like(mine["input_ids"]) if mask is None else mask)
            outputs = self.model.run(mine, last, self._segments(parts))
            assert outputs.project is not None  # there is no head
            lines = outputs.project(outputs.read)
            widths = [lines.shape[-1]] * len(order)
        by_row = {row: line[:width] for row, line, width in zip(order.tolist(), lines, widths, strict=True)}
        return [by_row[row] for row in range(len(order))]

    def read(self, owners: Owners, inputs: Mapping[str, Tensor], reads: Tensor) -> PassOutputs:
        """Return the last hidden states that rows are asked for, (M, width), in the order of `reads` (M, 2)."""
        parts = parts_of(self._parts, owners)
        order = torch.tensor([row for part in parts for row in part.rows])
        mine = {name: value[order].to(self.device) for name, value in inputs.items()}
        places = torch.argsort(order)  # of each row, where it is computed
        moved = torch.stack([places[reads[:, 0]], reads[:, 1]], dim=1).to(self.device)
        return self.model.run(mine, moved, self._segments(parts))

    def read_shared(self, owners: Owners, parts: Sequence[EncodedRows]) -> list[PassOutputs]:
        """Return what is read of rows behind prompts that they share; prompts are shared within a part.

        Args:
            owners: Of each part.
        """
        order = self._order(owners)

        def computing(part_of: Indices) -> AbstractContextManager[None]:
            return self._computing([owners[order[i]] for i in part_of])

        outputs = read_shared(self.model.model, [parts[i] for i in order], computing)
        by_part = dict(zip(order, outputs, strict=True))
        return [by_part[i] for i in range(len(parts))]

    def write(self, owners: Owners, rows: Sequence[OpenRow]) -> None:
        """Continue the rows of one batch until each has ended."""
        order = self._order(owners)

        def computing(left: Indices) -> AbstractContextManager[None]:
            # Sorted as they are, the rows of an adapter stay side by side whichever of them leave.
            return self._computing([owners[order[i]] for i in left])

        write_rows(self.model.model, [rows[row] for row in order], computing)

    def _order(self, owners: Owners) -> list[int]:
        """Return rows in an order in which those of one layout are side by side."""
        return [row for part in parts_of(self._parts, owners) for row in part.rows]

    def _computing(self, owners: Owners) -> AbstractContextManager[None]:
        """Set whose the rows of this thread's passes are; they are in the order of `_order`."""
        return self.model.computing(self._segments(parts_of(self._parts, owners)))

    def _segments(self, parts: Sequence[Part]) -> list[RowSegment[StoredRows]]:
        segments, start = [], 0
        for part in parts:
            segments.append(self.model.segment(start, start + len(part.rows), part.layout, part.vectors))
            start += len(part.rows)
        return segments


def parts_of(parts: Sequence[Part], owners: Owners) -> list[Part]:
    """Return the parts of a batch whose row i has the adapter of row `owners[i]` in the batch that `parts` are of."""
    wanted: dict[int, list[int]] = {}
    for number, row in enumerate(owners):
        wanted.setdefault(row, []).append(number)
    chosen = []
    for part in parts:
        own = [(number, place) for place, row in enumerate(part.rows) for number in wanted.get(row, ())]
        if own:
            numbers, places = zip(*own, strict=True)
            shared = part.layout is None or len(part.vectors) == 1
            vectors = part.vectors if shared else part.vectors[torch.tensor(places, device=part.vectors.device)]
            chosen.append(Part(tuple(numbers), part.layout, vectors))
    return chosen


def _last_tokens(mask_nT: Tensor) -> Tensor:
    """Return row and column of each row's last token, (n, 2), whichever side padding is on."""
    columns_T = torch.arange(1, mask_nT.shape[1] + 1, device=mask_nT.device)
    rows_n = torch.arange(len(mask_nT), device=mask_nT.device)
    return torch.stack([rows_n, (mask_nT * columns_T).argmax(1)], dim=1)
