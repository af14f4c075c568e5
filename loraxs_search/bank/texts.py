"""Texts for several adapters: the requests of their tasks, computed as one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loraxs_search.bank.adapter_store import Part
from loraxs_search.base_model import joined
from loraxs_search.errors import TaskDataError
from loraxs_search.records import Prediction, Task
from loraxs_search.tasks import Batch, RowSource, encode, kind_of
from loraxs_search.tasks.kinds import Asking, PassOutputs, Read, Request, TaskKind, drive

Text = str | tuple[str, ...]
OnText = Callable[[str, int, str], None]


class Questions:
    """One question to each adapter that is named, which may be named more than once.

    Args:
        tasks: Of each question's adapter.
        names: Its name.
    Raises:
        TaskDataError: a task takes another number of texts.
    """

    def __init__(
        self, tasks: Sequence[Task], names: Sequence[str], texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._source = RowSource(tokenizer)
        self._num = len(texts)
        self._rows: dict[str, list[int]] = {}  # of each adapter
        self._asking: dict[str, Asking[list[Prediction]]] = {}
        self._add(tasks, names, [(text,) if isinstance(text, str) else tuple(text) for text in texts])

    def predict(self, bank: BankRows) -> list[Prediction]:
        """Return the answers, in the order of the questions; each adapter's are its own task's.

        Raises:
            TrialDivergedError: some output is not finite.
        """
        predictions: list[Prediction | None] = [None] * self._num
        for name, answers in drive(self._asking, lambda requests: self._compute(requests, bank)).items():
            if isinstance(answers, Exception):
                raise answers
            for row, answer in zip(self._rows[name], answers, strict=True):
                predictions[row] = answer
        return [answer for answer in predictions if answer is not None]

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _add(self, tasks: Sequence[Task], names: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
        """Tokenise each task's questions at once, and begin to ask each adapter its own."""
        of_task: dict[int, list[int]] = {}
        for row, task in enumerate(tasks):
            of_task.setdefault(id(task), []).append(row)
        for numbers in of_task.values():
            kind = kind_of(tasks[numbers[0]])
            _check(kind, [rows[row] for row in numbers])
            encoded = encode(kind, self._source.tokenizer, [rows[row] for row in numbers])
            places: dict[str, list[int]] = {}
            for place, row in enumerate(numbers):
                places.setdefault(names[row], []).append(place)
            for name, own in places.items():
                self._rows[name] = [numbers[place] for place in own]
                shown = [" | ".join(rows[row]) for row in self._rows[name]]
                self._asking[name] = kind.predict(self._source, encoded.take(np.array(own)), shown)

    def _compute(self, requests: Mapping[str, Request], bank: BankRows) -> dict[str, Any]:
        reads = {name: request for name, request in requests.items() if isinstance(request, Read)}
        writes = {name: request for name, request in requests.items() if isinstance(request, Write)}
        owners = {name: self._rows[name][0] for name in requests}  # an adapter's first question stands for it
        return {
            **(_read_outputs(reads, owners, bank, self._source) if bank.model.has_head else {}),
            **({} if bank.model.has_head else _read_states(reads, owners, bank, self._source)),
            **write_all(writes, owners, bank, self._source.tokenizer),
        }


def write_all(
    writes: Mapping[str, Write],
    owners: Mapping[str, int],
    bank: BankRows,
    tokenizer: PreTrainedTokenizerBase,
    on_text: OnText | None = None,
) -> dict[str, Written]:
    """Continue the prompts of several requests side by side.

    Args:
        owners: Of each request, a question that names its adapter.
        on_text: Called with a request's name, a row's number in it, and each piece of its text.
    """
    model = bank.model.model
    listening = {name: None if on_text is None else partial(on_text, name) for name in writes}
    rows = {name: open_rows(write, tokenizer, model, listening[name]) for name, write in writes.items()}
    every = [(name, row) for name, own in rows.items() for row in own]
    if every:
        lengths = np.array([len(row.prompt) + writes[name].max_new_tokens for name, row in every])
        for batch in writing_batches(lengths, default_rows(bank.model.device)):
            bank.write([owners[every[i][0]] for i in batch], [every[i][1] for i in batch])
    return {name: written(own) for name, own in rows.items()}


def _read_outputs(
    reads: Mapping[str, Read], owners: Mapping[str, int], bank: BankRows, source: RowSource
) -> dict[str, tuple[Tensor, ...]]:
    """Compute what heads give for the rows of all requests, in one pass."""
    if not reads:
        return {}
    batches = {name: source.collate(read.source, read.rows) for name, read in reads.items()}
    rows = [owners[name] for name, batch in batches.items() for _ in range(len(batch.counts))]
    logits, start, results = bank.logits(rows, _joined(list(batches.values()), source)), 0, {}
    for name, batch in batches.items():
        own = torch.stack(logits[start : start + len(batch.counts)]).cpu()
        results[name] = reads[name].reduce(PassOutputs(own), batch)
        start += len(own)
    return results


def _read_states(
    reads: Mapping[str, Read], owners: Mapping[str, int], bank: BankRows, source: RowSource
) -> dict[str, tuple[Tensor, ...]]:
    """Compute last hidden states for the rows of all requests, in passes of rows of like lengths."""
    whole = {name: _whole(read.source, source) for name, read in reads.items()}
    every = [(name, place) for name, read in reads.items() for place in range(len(read.rows))]
    lengths = np.array([whole[name].lengths[reads[name].rows[place]] for name, place in every])
    parts: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in reads}
    places: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in reads}
    for chosen in eval_batches(lengths, EVAL_TOKENS) if every else ():
        of_name: dict[str, list[int]] = {}
        for number in chosen:
            name, place = every[number]
            of_name.setdefault(name, []).append(place)
        rows = {name: np.array(own) for name, own in of_name.items()}
        batches = {name: source.collate(whole[name], reads[name].rows[own]) for name, own in rows.items()}
        for name, outputs in _states_of(batches, owners, bank, source).items():
            parts[name].append(tuple(part.cpu() for part in reads[name].reduce(outputs, batches[name])))
            places[name].append(rows[name])
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


def _whole(rows: Split | EncodedRows, source: RowSource) -> EncodedRows:
    """Return rows that begin with their prompts, where they share these."""
    assert isinstance(rows, EncodedRows)  # a bank has no splits
    if rows.prompts is None or rows.prompt_of is None:
        return rows
    before = rows.prompts.take(rows.prompt_of)
    numbers = range(len(rows))
    positions = rows.positions
    return EncodedRows(
        ids=Ragged.of([np.concatenate([before.row(i), rows.ids.row(i)]) for i in numbers], np.int32),
        positions=None
        if positions is None
        else Ragged.of([positions.row(i) + before.lengths[i] for i in numbers], np.int32),
        targets=rows.targets,
    )


def _joined(batches: Sequence[Batch], source: RowSource) -> dict[str, Tensor]:
    width = max(batch.inputs["input_ids"].shape[1] for batch in batches)
    return joined([batch.inputs for batch in batches], width, int(source.tokenizer.pad_token_id), _side(source))


def _side(source: RowSource) -> Literal["left", "right"]:
    return "left" if source.tokenizer.padding_side == "left" else "right"


def _check(kind: TaskKind, rows: Sequence[tuple[str, ...]]) -> None:
    takes = len(kind.question_texts)
    if wrong := [row for row in rows if len(row) != takes]:
        number = "one text" if takes == 1 else "a pair of texts" if takes == 2 else f"{takes} texts"
        got = wrong[0][0] if len(wrong[0]) == 1 else wrong[0]
        raise TaskDataError(f"Task {kind.task.name} must be given {number} a row, but got {got!r}.")
