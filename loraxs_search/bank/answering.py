"""Rows of many adapters in one batch: the answers of their tasks to texts, and what they write after prompts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from numbers import Integral
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
from loraxs_search.errors import TrialDivergedError, UsageError, shortened
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.task import Task
from loraxs_search.tasks.encoded import EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds import GenerateRequest, RequestGenerator, Sampling, begin_ids, kind_of, token_ids
from loraxs_search.tasks.prepared import encode
from loraxs_search.tasks.rows import SourceLocation, is_text

log = logging.getLogger(__name__)


class BankRows(AdaptedBase):
    """The adapters of some questions, taken out of the bank: it may lose them meanwhile. Owners are the questions.

    Args:
        parts: Of these questions, each row of which is a question.
    """

    def __init__(self, bank: BankModel, parts: Sequence[Part]) -> None:
        super().__init__(bank.model, bank.context)
        self._bank, self._parts = bank, parts
        self._places = {row: (n, place) for n, part in enumerate(parts) for place, row in enumerate(part.rows)}

    def row_map(self, owners: Owners) -> RowMap[StoredRows]:
        segments, start = list[RowSegment[StoredRows]](), 0
        for number, run in groupby((self._places[owner] for owner in owners.tolist()), key=lambda place: place[0]):
            part, places = self._parts[number], [place for _, place in run]
            vectors = part.vectors
            if part.layout is not None and len(vectors) > 1:
                own = places[:1] if len(set(places)) == 1 else places
                vectors = vectors[torch.tensor(own, device=vectors.device)]
            segments.append(self._bank.segment(start, start + len(places), part.layout, vectors))
            start += len(places)
        return RowMap(segments)

    def requesters(self, data: RowSource, models: Mapping[str, int | None]) -> dict[str, Requester]:
        """Return who asks: one adapter a question; those of one layout stand side by side.

        Args:
            models: The number of outputs of each question's head, by the adapter's name, in their order.
        """
        names = list(models)
        return {names[owner]: Requester(owner, data, models[names[owner]]) for owner in self._places}

    @torch.inference_mode()
    def logits(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return each question's logits, float32: its head's (labels,), or those after its last token (vocabulary,)."""
        order = list(self._places)
        mine = {name: value[torch.tensor(order)].to(self.device) for name, value in inputs.items()}
        mask = mine.get("attention_mask")  # models take rows without one whole
        reads = None
        if not self._bank.has_head:  # of each row the last token, whichever side padding is on
            mask_nT = torch.ones_like(mine["input_ids"]) if mask is None else mask
            columns_T = torch.arange(1, mask_nT.shape[1] + 1, device=mask_nT.device)
            rows_n = torch.arange(len(mask_nT), device=mask_nT.device)
            reads = torch.stack([rows_n, (mask_nT * columns_T).argmax(1)], dim=1)
        with self.computing(self.row_map(np.array(order))):
            outputs = forward(self.model, mine, reads)
        if outputs.project is None:
            own = self._bank.model.config.num_labels  # of rows without an adapter
            widths = [part.layout.num_labels if part.layout else own for part in self._parts for _ in part.rows]
            lines = [line[..., :width] for line, width in zip(outputs.read, widths, strict=True)]
        else:
            lines = list(outputs.project(outputs.read))
        by_row = dict(zip(order, lines, strict=True))
        return [by_row[row] for row in range(len(order))]


class OpenRows(AdaptedBase):
    """Adapters that come and go between passes, each under a number that rows name it by, as in a server.

    `put` and `drop` are for one thread; passes may be computed side by side. An adapter that the bank loses meanwhile
    stays here until it is dropped.
    """

    def __init__(self, bank: BankModel) -> None:
        super().__init__(bank.model, bank.context)
        self._bank, self._next = bank, 0
        self._adapters: dict[int, tuple[Layout | None, Tensor]] = {}

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
        for _, run in groupby(owners.tolist(), key=lambda owner: id(self._adapters[owner][0])):
            own = list(run)
            layout, vectors = self._adapters[own[0]]
            if layout is not None and len(set(own)) > 1:
                vectors = torch.cat([self._adapters[owner][1] for owner in own])
            segments.append(self._bank.segment(start, start + len(own), layout, vectors))
            start += len(own)
        return RowMap(segments)


class Questions:
    """One question to each adapter that is named, which may be named more than once.

    Args:
        tasks: Of each question's adapter.
        names: Its name.
        rows: Its texts.
    Raises:
        TaskDataError: a row is not what its task takes.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        names: Sequence[str],
        rows: Sequence[tuple[Any, ...]],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._source = RowSource(tokenizer)
        self._outputs = {name: kind_of(task).model.num_outputs for name, task in zip(names, tasks, strict=True)}
        self._rows: dict[str, list[int]] = {}  # of each adapter
        self._asking: dict[str, RequestGenerator[list[Prediction]]] = {}
        of_task: dict[int, list[int]] = {}
        cut = Counter[tuple[int, str]]()  # rows, by their `max_length` and what they lose
        for row, task in enumerate(tasks):
            of_task.setdefault(id(task), []).append(row)
        for numbers in of_task.values():  # each task's questions become tokens at once
            kind = kind_of(tasks[numbers[0]])
            own, place = [rows[row] for row in numbers], SourceLocation("the request").take(numbers)
            encoded = encode(kind, self._source.tokenizer, own, place)
            if encoded.num_cut:
                cut[kind.task.max_length, kind.cut_part] += encoded.num_cut
            of_name: dict[str, list[int]] = {}
            for index, row in enumerate(numbers):
                of_name.setdefault(names[row], []).append(index)
            for name, indices in of_name.items():
                self._rows[name] = [numbers[index] for index in indices]
                shown = [kind.shown(rows[row]) for row in self._rows[name]]
                self._asking[name] = kind.predict(self._source, encoded.take(np.array(indices)), shown)
        if cut:
            limits, parts = (" or ".join(dict.fromkeys(map(str, column))) for column in zip(*sorted(cut), strict=True))
            log.warning(
                "%d of %d rows are longer than max_length=%s: their %s are lost", cut.total(), len(rows), limits, parts
            )

    def predict(self, bank: BankRows) -> list[Prediction]:
        """Return the answers, in the order of the questions; each adapter's are its own task's.

        Args:
            bank: Has each adapter once, in the order in which they are named first.
        Raises:
            TrialDivergedError: some output is not finite.
        """
        predictions: dict[int, Prediction] = {}
        for name, answers in Engine(bank).run(bank.requesters(self._source, self._outputs), self._asking).items():
            if isinstance(answers, Exception):
                raise answers
            predictions |= zip(self._rows[name], answers, strict=True)
        return [predictions[row] for row in range(len(predictions))]


@dataclass(frozen=True)
class GenerateOptions:
    """How a caller wants answers; None is left to each adapter's task."""

    max_new_tokens: int | None
    stop: tuple[str, ...] | None
    sampling: Sampling | None
    logprobs: int | None = None

    @classmethod
    def of(
        cls,
        max_new_tokens: int | None,
        stop: str | Sequence[str] | None,
        sampling: Sampling | None,
        logprobs: int | None = None,
    ) -> GenerateOptions:
        """Check what a caller gives.

        Raises:
            UsageError: a value is not what it should be.
        """
        limit: Any = max_new_tokens
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, Integral) or limit < 1):
            raise UsageError(f"`max_new_tokens` must be a whole number from 1, but got {limit!r}.")
        given: Any = stop
        is_one = isinstance(given, str) or not isinstance(given, Iterable)
        texts = None if given is None else (given,) if is_one else tuple(given)
        if not all(isinstance(text, str) and text for text in texts or ()):
            raise UsageError(f"`stop` must be texts that are not empty, but got {stop!r}.")
        return cls(None if limit is None else int(limit), texts, sampling, logprobs)


def generate(
    names: Sequence[str | None],
    prompts: Sequence[str],
    tasks: Mapping[str | None, Task | None],
    options: GenerateOptions,
    bank: BankRows,
    tokenizer: PreTrainedTokenizerBase,
    on_text: Callable[[int, str], None] | None,
) -> list[str]:
    """Return what is written after each prompt; see `AdapterBank.generate`."""
    encoded = encoded_prompts(prompts, tokenizer)
    keys = {name: str(number) for number, name in enumerate(tasks)}  # the base has no name
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(keys[name], []).append(row)
    writes = {keys[name]: _write(encoded, rows[keys[name]], task, options, tokenizer) for name, task in tasks.items()}
    for write in writes.values():
        _check_length(write, tokenizer.model_max_length)
    heard = None if on_text is None else lambda key, number, piece: on_text(rows[key][number], piece)
    requesters = bank.requesters(RowSource(tokenizer), dict.fromkeys(keys.values()))
    texts = [""] * len(prompts)
    for key, written in Engine(bank).compute(requesters, writes, heard).items():
        if not np.isfinite(written.margins).all():
            name = list(tasks)[int(key)]
            raise TrialDivergedError(f"Logits must be finite, but those of adapter {name!r} are not.")
        for row, text in zip(rows[key], written.texts, strict=True):
            texts[row] = text
    return texts


def generate_request(
    prompts: Sequence[str], task: Task | None, options: GenerateOptions, tokenizer: PreTrainedTokenizerBase
) -> GenerateRequest:
    """Return the request that continues prompts with one adapter of a task, or with the bare base.

    Raises:
        UsageError: as `AdapterBank.generate`.
    """
    request = _write(encoded_prompts(prompts, tokenizer), range(len(prompts)), task, options, tokenizer)
    _check_length(request, tokenizer.model_max_length)
    return request


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


def _write(
    encoded: EncodedRows,
    rows: Sequence[int],
    task: Task | None,
    options: GenerateOptions,
    tokenizer: PreTrainedTokenizerBase,
) -> GenerateRequest:
    kind = None if task is None else kind_of(task)
    serving = kind and kind.serving
    limit = options.max_new_tokens or (serving and serving.max_new_tokens)
    if not limit:
        model = "the bare base" if task is None else f"task {task.name}, of kind {task.kind},"
        raise UsageError(
            f"`max_new_tokens` must say how long an answer may be, but got None, and {model} says nothing.",
            hint="give max_new_tokens=128, for example",
        )
    stop = options.stop if options.stop is not None else serving.stop if serving else ()
    ends = kind.end_ids(tokenizer) if kind else ()
    return GenerateRequest(encoded, np.array(rows), limit, stop, options.sampling, ends, options.logprobs)


def _check_length(write: GenerateRequest, context: int) -> None:
    lengths = write.source.lengths[write.rows]
    if (longest := int(lengths.max())) + write.max_new_tokens > context:
        raise UsageError(
            f"A prompt and what may be written after it must be at most {context} tokens with this base, but row"
            f" {write.rows[lengths.argmax()] + 1} has {longest}, and max_new_tokens={write.max_new_tokens}.",
            hint="shorten the prompt, or lower max_new_tokens",
        )
