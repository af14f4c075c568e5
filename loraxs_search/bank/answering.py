"""The requests of several adapters' tasks, computed side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loraxs_search.bank.bank_rows import BankRows
from loraxs_search.base_model import joined
from loraxs_search.tasks import Batch, RowSource, eval_batches
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds import PassOutputs, Read, Request, Write, Written
from loraxs_search.trial.evaluate import EVAL_TOKENS, in_row_order
from loraxs_search.trial.generate import default_rows, open_rows, writing_batches
from loraxs_search.trial.open_row import written
from loraxs_search.trial.shared_prompts import is_worth_sharing, prompt_groups

OnText = Callable[[str | None, int, str], None]
Indices = npt.NDArray[np.int64]
Places = Mapping[str, Indices]  # of rows, by request
NameT = TypeVar("NameT", bound=str | None)


def computed(
    requests: Mapping[str, Request], owners: Mapping[str, int], bank: BankRows, source: RowSource
) -> dict[str, Any]:
    """Return what requests come to, by adapter.

    Args:
        owners: Of each request, which of the bank's adapters is its own.
    """
    reads = {name: request for name, request in requests.items() if isinstance(request, Read)}
    writes = {name: request for name, request in requests.items() if isinstance(request, Write)}
    read = _read_outputs if bank.model.has_head else _read_states
    return {**read(reads, owners, bank, source), **write_all(writes, owners, bank, source.tokenizer)}


def write_all(
    writes: Mapping[NameT, Write],
    owners: Mapping[NameT, int],
    bank: BankRows,
    tokenizer: PreTrainedTokenizerBase,
    on_text: OnText | None = None,
) -> dict[NameT, Written]:
    """Continue the prompts of several requests side by side.

    Args:
        owners: Of each request, which of the bank's adapters is its own.
        on_text: Called with a request's name, a row's number in it, and each piece of its text.
    """
    model = bank.model.model
    listening = {name: None if on_text is None else partial(on_text, name) for name in writes}
    rows = {name: open_rows(write, tokenizer, model, listening[name]) for name, write in writes.items()}
    every = [(name, row) for name, own in rows.items() for row in own]
    if every:
        lengths = np.array([len(row.prompt) + writes[name].max_new_tokens for name, row in every])
        for batch in writing_batches(lengths, default_rows(bank.device)):
            bank.write([owners[every[i][0]] for i in batch], [every[i][1] for i in batch])
    return {name: written(own) for name, own in rows.items()}


def _read_outputs(
    reads: Mapping[str, Read], owners: Mapping[str, int], bank: BankRows, source: RowSource
) -> dict[str, tuple[Tensor, ...]]:
    """Compute what heads give for the rows of all requests, in passes of rows of like lengths."""

    def compute(places: Places) -> dict[str, tuple[Tensor, ...]]:
        batches = {name: source.collate(reads[name].source, reads[name].rows[own]) for name, own in places.items()}
        rows = [owners[name] for name, batch in batches.items() for _ in range(len(batch.counts))]
        logits, start, results = bank.logits(rows, _joined(list(batches.values()), source)), 0, {}
        for name, batch in batches.items():
            own = torch.stack(logits[start : start + len(batch.counts)]).cpu()
            results[name] = reads[name].reduce(PassOutputs(own), batch)
            start += len(own)
        return results

    return _in_batches(
        *_single_rows(reads, {name: source.encoded(read.source) for name, read in reads.items()}), compute
    )


def _read_states(
    reads: Mapping[str, Read], owners: Mapping[str, int], bank: BankRows, source: RowSource
) -> dict[str, tuple[Tensor, ...]]:
    """Compute last hidden states for the rows of all requests; prompts that many rows share are computed once."""
    sources = {name: source.encoded(read.source) for name, read in reads.items()}
    shared = {name: read for name, read in reads.items() if is_worth_sharing(sources[name], read.rows)}
    whole = {name: read for name, read in reads.items() if name not in shared}
    reader = _StateReader(owners, bank, source)
    return {
        **reader.whole(whole, {name: sources[name].with_prompts() for name in whole}),
        **reader.shared(shared, sources),
    }


class _StateReader:
    """Computes requests of bases without a head.

    Args:
        owners: Of each request, which of the bank's adapters is its own.
    """

    def __init__(self, owners: Mapping[str, int], bank: BankRows, source: RowSource) -> None:
        self._owners, self._bank, self._source = owners, bank, source

    def whole(self, reads: Mapping[str, Read], sources: Mapping[str, EncodedRows]) -> dict[str, tuple[Tensor, ...]]:
        """Compute requests in passes of rows of like lengths."""

        def compute(places: Places) -> dict[str, tuple[Tensor, ...]]:
            batches = {name: self._source.collate(sources[name], reads[name].rows[own]) for name, own in places.items()}
            outputs = _states_of(batches, self._owners, self._bank, self._source)
            return {
                name: reads[name].reduce(outputs[name], batch.to(self._bank.device)) for name, batch in batches.items()
            }

        return _in_batches(*_single_rows(reads, sources), compute)

    def shared(self, reads: Mapping[str, Read], sources: Mapping[str, EncodedRows]) -> dict[str, tuple[Tensor, ...]]:
        """Compute requests prompt by prompt, each with all rows that continue it."""

        def compute(places: Places) -> dict[str, tuple[Tensor, ...]]:
            rows = {name: reads[name].rows[own] for name, own in places.items()}
            parts = [sources[name].take(own) for name, own in rows.items()]
            outputs = self._bank.read_shared([self._owners[name] for name in rows], parts)
            batches = [self._source.collate(sources[name], own).to(self._bank.device) for name, own in rows.items()]
            return {
                name: reads[name].reduce(output, batch)
                for name, output, batch in zip(rows, outputs, batches, strict=True)
            }

        groups = [(name, *group) for name, read in reads.items() for group in prompt_groups(sources[name], read.rows)]
        return _in_batches([(name, own) for name, _, own in groups], [tokens for _, tokens, _ in groups], compute)


def _single_rows(
    reads: Mapping[str, Read], sources: Mapping[str, EncodedRows]
) -> tuple[list[tuple[str, Indices]], list[int]]:
    """Return each row of some requests as an item, and its length."""
    items = [(name, np.array([place])) for name, read in reads.items() for place in range(len(read.rows))]
    return items, [int(tokens) for name, read in reads.items() for tokens in sources[name].lengths[read.rows]]


def _in_batches(
    items: Sequence[tuple[str, Indices]],
    lengths: Sequence[int],
    compute: Callable[[Places], Mapping[str, tuple[Tensor, ...]]],
) -> dict[str, tuple[Tensor, ...]]:
    """Compute places of requests, those of an item together; return each request's results in the order of its rows.

    Args:
        items: The name of a request, and places in its rows.
        lengths: Tokens of each item.
    """
    parts: dict[str, list[tuple[Tensor, ...]]] = {}
    places: dict[str, list[Indices]] = {}
    for chosen in eval_batches(np.array(lengths), EVAL_TOKENS) if items else ():
        of_name: dict[str, list[Indices]] = {}
        for number in chosen:
            name, own = items[number]
            of_name.setdefault(name, []).append(own)
        together = {name: np.concatenate(own) for name, own in of_name.items()}
        for name, values in compute(together).items():
            parts.setdefault(name, []).append(tuple(part.cpu() for part in values))
            places.setdefault(name, []).append(together[name])
    return {name: in_row_order(places[name], own) for name, own in parts.items()}


def _states_of(
    batches: Mapping[str, Batch], owners: Mapping[str, int], bank: BankRows, source: RowSource
) -> dict[str, PassOutputs]:
    """Compute the batches of several adapters as one; return what each of them reads."""
    inputs = _joined(list(batches.values()), source)
    num_columns, first_row, moved = inputs["input_ids"].shape[1], 0, []
    for batch in batches.values():
        assert batch.reads is not None  # there is no head
        padding = num_columns - batch.inputs["input_ids"].shape[1] if _side(source) == "left" else 0
        moved.append(batch.reads + torch.tensor([first_row, padding]))
        first_row += len(batch.counts)
    rows = [owners[name] for name, batch in batches.items() for _ in range(len(batch.counts))]
    outputs = bank.read(rows, inputs, torch.cat(moved))
    states = torch.split(outputs.read, [len(own) for own in moved])
    return {name: PassOutputs(own, outputs.project) for name, own in zip(batches, states, strict=True)}


def _joined(batches: Sequence[Batch], source: RowSource) -> dict[str, Tensor]:
    width = max(batch.inputs["input_ids"].shape[1] for batch in batches)
    return joined([batch.inputs for batch in batches], width, int(source.tokenizer.pad_token_id), _side(source))


def _side(source: RowSource) -> Literal["left", "right"]:
    return "left" if source.tokenizer.padding_side == "left" else "right"
