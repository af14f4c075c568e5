"""Rows of many adapters in one batch: the answers of their tasks to texts, and requests to continue prompts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loraxs_search.bank.adapter_store import Layout, Part
from loraxs_search.bank.bank_model import BankModel, StoredRows
from loraxs_search.engine.layers import RowMap, RowSegment
from loraxs_search.engine.passes import AdaptedBase, Owners, Requester, forward
from loraxs_search.engine.requests import Engine
from loraxs_search.errors import UsageError, shortened
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.task import Task
from loraxs_search.tasks.encoded import EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds import GenerateRequest, RequestGenerator, Sampling, begin_ids, kind_of, token_ids
from loraxs_search.tasks.prepared import encode
from loraxs_search.tasks.rows import SourceLocation, is_text

log = logging.getLogger(__name__)


class BankRows(AdaptedBase):
    """Adapters taken out of the bank, which may lose them meanwhile, each under a number that rows name it by.

    `put` and `drop` are for one thread; passes may be computed side by side.

    Args:
        parts: Adapters that are there from the beginning, under the numbers of their rows.
    """

    def __init__(self, bank: BankModel, parts: Sequence[Part] = ()) -> None:
        super().__init__(bank.model, bank.context)
        self._bank = bank
        self._adapters: dict[int, tuple[Layout | None, Tensor]] = {}  # of one layout side by side; vectors (1, width)
        for part in parts:
            each = torch.split(part.vectors, 1) if len(part.vectors) > 1 else [part.vectors] * len(part.rows)
            self._adapters |= {row: (part.layout, own) for row, own in zip(part.rows, each, strict=True)}
        self._next = len(self._adapters)

    def put(self, part: Part) -> int:
        """Add the one adapter of a part, or none, and return its number."""
        self._next += 1
        self._adapters[self._next] = part.layout, part.vectors
        return self._next

    def drop(self, owner: int) -> None:
        """Remove an adapter that no row names any more."""
        del self._adapters[owner]

    def shape(self, owner: int) -> str:
        """Return what adapters have in common that are computed fastest side by side."""
        layout, _ = self._adapters[owner]
        return "" if layout is None else layout.sort_key

    def row_map(self, owners: Owners) -> RowMap[StoredRows]:
        segments, start = list[RowSegment[StoredRows]](), 0
        for _, run in groupby((self._adapters[owner] for owner in owners.tolist()), key=lambda own: id(own[0])):
            (layout, *_), vectors = zip(*run, strict=True)
            is_one = layout is None or all(own is vectors[0] for own in vectors)
            heads = self._bank.own_heads if layout is None else self._bank.heads(layout)
            stored = StoredRows(layout, vectors[0] if is_one else torch.cat(vectors), heads)
            segments.append(RowSegment(stored, start, start + len(vectors)))
            start += len(vectors)
        return RowMap(segments)

    def requesters(self, data: RowSource, names: Sequence[str], outputs: Sequence[int | None]) -> dict[str, Requester]:
        """Return who asks, by name: one adapter each; those of one layout stand side by side.

        Args:
            outputs: The number of outputs of each one's head.
        """
        return {names[owner]: Requester(owner, data, outputs[owner]) for owner in self._adapters}

    @torch.inference_mode()
    def logits(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return each row's logits, float32: its head's (labels,), or those after its last token (vocabulary,)."""
        order = list(self._adapters)
        mine = {name: value[torch.tensor(order)].to(self.device) for name, value in inputs.items()}
        reads = None
        if not self._bank.has_head:  # of each row the last token, whichever side padding is on
            mask_nT = mine.get("attention_mask", torch.ones_like(mine["input_ids"]))  # without one, rows are whole
            columns_T = torch.arange(1, mask_nT.shape[1] + 1, device=mask_nT.device)
            rows_n = torch.arange(len(mask_nT), device=mask_nT.device)
            reads = torch.stack([rows_n, (mask_nT * columns_T).argmax(1)], dim=1)
        with self.context.computing(self.row_map(np.array(order))):
            outputs = forward(self.model, mine, reads)
        if outputs.project is None:
            own = self._bank.model.config.num_labels  # of rows without an adapter
            widths = [own if layout is None else layout.num_labels for layout, _ in self._adapters.values()]
            lines = [line[..., :width] for line, width in zip(outputs.read, widths, strict=True)]
        else:
            lines = list(outputs.project(outputs.read))
        by_row = dict(zip(order, lines, strict=True))
        return [by_row[row] for row in range(len(order))]


def answer(
    tasks: Sequence[Task],
    names: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
    bank: BankRows,
    tokenizer: PreTrainedTokenizerBase,
    tokenizing: AbstractContextManager[Any],
) -> list[Prediction]:
    """Ask each question of the adapter that is named for it, and return the answers in the order of the questions.

    Args:
        tasks: Of each question's adapter.
        names: Its name; an adapter may be named more than once.
        rows: Its texts.
        bank: Has each adapter once, in the order in which they are named first.
        tokenizing: Held while rows become tokens.
    Raises:
        TaskDataError: a row is not what its task takes.
        TrialDivergedError: some output is not finite.
    """
    source = RowSource(tokenizer)
    outputs = {name: kind_of(task).model.num_outputs for name, task in zip(names, tasks, strict=True)}
    rows_of: dict[str, list[int]] = {}  # of each adapter
    asking: dict[str, RequestGenerator[list[Prediction]]] = {}
    of_task: dict[int, list[int]] = {}
    cut = Counter[tuple[int, str]]()  # rows, by their `max_length` and what they lose
    for row, task in enumerate(tasks):
        of_task.setdefault(id(task), []).append(row)
    with tokenizing:
        for numbers in of_task.values():  # each task's questions become tokens at once
            kind = kind_of(tasks[numbers[0]])
            own, place = [rows[row] for row in numbers], SourceLocation("the request").take(numbers)
            encoded = encode(kind, tokenizer, own, place)
            if encoded.num_cut:
                cut[kind.task.max_length, kind.cut_part] += encoded.num_cut
            of_name: dict[str, list[int]] = {}
            for index, row in enumerate(numbers):
                of_name.setdefault(names[row], []).append(index)
            for name, indices in of_name.items():
                rows_of[name] = [numbers[index] for index in indices]
                shown = [kind.shown(rows[row]) for row in rows_of[name]]
                asking[name] = kind.predict(source, encoded.take(np.array(indices)), shown)
    if cut:
        limits, parts = (" or ".join(dict.fromkeys(map(str, column))) for column in zip(*sorted(cut), strict=True))
        log.warning(
            "%d of %d rows are longer than max_length=%s: their %s are lost", cut.total(), len(rows), limits, parts
        )
    predictions: dict[int, Prediction] = {}
    requesters = bank.requesters(source, list(outputs), list(outputs.values()))
    for name, answers in Engine(bank).run(requesters, asking).items():
        if isinstance(answers, Exception):
            raise answers
        predictions |= zip(rows_of[name], answers, strict=True)
    return [predictions[row] for row in range(len(predictions))]


@dataclass(frozen=True)
class GenerateOptions:
    """How a caller wants answers; None is left to each adapter's task."""

    max_new_tokens: int | None
    stop: tuple[str, ...] | None
    sampling: Sampling | None
    logprobs: int | None = None


def generate_request(
    encoded: EncodedRows,
    rows: Sequence[int],
    task: Task | None,
    options: GenerateOptions,
    tokenizer: PreTrainedTokenizerBase,
) -> GenerateRequest:
    """Return the request that continues these rows of prompts with one adapter of a task, or with the bare base.

    Raises:
        UsageError: nothing says how long an answer may be, or a prompt leaves no space for it.
    """
    kind = None if task is None else kind_of(task)
    serving, context = kind and kind.serving, tokenizer.model_max_length
    limit = options.max_new_tokens or (serving and serving.max_new_tokens)
    if not limit:
        model = "the bare base" if task is None else f"task {task.name}, of kind {task.kind},"
        raise UsageError(
            f"`max_new_tokens` must say how long an answer may be, but got None, and {model} says nothing.",
            hint="give max_new_tokens=128, for example",
        )
    lengths = encoded.lengths[np.array(rows)]
    if (longest := int(lengths.max())) + limit > context:
        raise UsageError(
            f"A prompt and what may be written after it must be at most {context} tokens with this base, but row"
            f" {rows[int(lengths.argmax())] + 1} has {longest}, and max_new_tokens={limit}.",
            hint="shorten the prompt, or lower max_new_tokens",
        )
    stop = options.stop if options.stop is not None else serving.stop if serving else ()
    ends = kind.end_ids(tokenizer) if kind else ()
    return GenerateRequest(encoded, np.array(rows), limit, stop, options.sampling, ends, options.logprobs)


def encoded_prompts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
    """Return the tokens of prompts. One that has the tokenizer's beginning already, as a rendered chat has, keeps it.

    Raises:
        UsageError: a prompt is no text, or has no token.
    """
    if wrong := [row for row, prompt in enumerate(prompts) if not is_text(prompt)]:
        raise UsageError(
            f"A prompt must be text, but that of row {wrong[0] + 1} is {shortened(prompts[wrong[0]])}.",
            hint="give each prompt as a str; `predict` makes it of a row's columns",
        )
    begin = begin_ids(tokenizer)
    ids = [own if own[: len(begin)] == begin else begin + own for own in token_ids(prompts, tokenizer)]
    if blank := [row for row, own in enumerate(ids) if not own]:
        raise UsageError(f"A prompt must have a token, but that of row {blank[0] + 1} has none.")
    return EncodedRows(Ragged.of(ids, np.int32))
