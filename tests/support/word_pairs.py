"""A task kind from outside the package: answers of two words, which a language model without a head reads and says.

It reads two positions of a row, learns both, and is scored in two passes: the second asks for the word after the one
that the first has answered. Tests write this file into a distribution of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import TaskDataError
from loraxs_search.records import Prediction, Split, TaskModel
from loraxs_search.tasks.kinds import (
    TEXT_METRICS,
    Asking,
    Columns,
    EncodedRows,
    Fault,
    Keys,
    PassOutputs,
    Ragged,
    Read,
    Rows,
    RowScores,
    Section,
    SourceLocation,
    TaskKind,
    Text,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from loraxs_search.tasks import Batch, RowSource

NUM_WORDS = 2


class WordPairsSection(Section):
    """`ask` and `answer`: columns of the data."""

    ask: Text
    answer: Text


class WordPairs(TaskKind):
    """Labels and predictions are texts of two words."""

    name = "word-pairs"
    section = WordPairsSection
    metrics = {"exact_match": TEXT_METRICS["exact_match"]}  # noqa: RUF012  # as the package's own kind has it
    hub_pipeline = "text-generation"

    @classmethod
    def fields(cls, section: Any) -> dict[str, Any]:
        return {"text": "", "label": "", "settings": {"ask": section.ask, "answer": section.answer}}

    def keys(self) -> dict[str, Any]:
        return dict(self.task.settings)

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        if "ask" in keys and keys["ask"] == keys.get("answer"):
            yield ("answer",), f"must be another column than `ask`, but got {keys['ask']!r}."

    @property
    def model(self) -> TaskModel:
        return TaskModel("AutoModelForCausalLM")

    @property
    def columns(self) -> dict[str, str]:
        return {"ask": self.task.settings["ask"], "answer": self.task.settings["answer"]}

    # ---- rows to tokens ----------------------------------------------------------------------------------------------
    def read(self, columns: Columns, place: SourceLocation) -> Rows:
        answers = columns.values[self.columns["answer"]]
        if faults := [row for row, answer in enumerate(answers) if len(str(answer).split()) != NUM_WORDS]:
            raise TaskDataError(
                f"Task {self.task.name}: `answer` must be two words, but {place.name} has"
                f" {place.values(answers, faults)}.",
                hint="correct the rows",
            )
        return Rows(list(map(str, columns.values[self.columns["ask"]])), None, np.array(answers, np.str_))

    @property
    def question_texts(self) -> tuple[str, ...]:
        return ("question",)

    def questions(self, rows: Sequence[tuple[Any, ...]]) -> Rows:
        if not rows or any(len(row) != 1 or not str(row[0]).strip() for row in rows):
            raise TaskDataError(f"Task {self.task.name} must be given one text per row, with something to read.")
        return Rows([row[0] for row in rows], None, np.array([""] * len(rows), np.str_))

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
        asked = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in rows.texts]
        asked = [ids[-(self.task.max_length - NUM_WORDS) :] for ids in asked]
        answers = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in rows.labels.tolist()]
        said = [ids[:-1] for ids in answers]  # what follows the last word is never asked for
        positions = [range(len(q) - 1, len(q) + len(a)) for q, a in zip(asked, said, strict=True)]
        return EncodedRows(
            ids=Ragged.of([q + a for q, a in zip(asked, said, strict=True)], np.int32),
            positions=Ragged.of([*map(list, positions)], np.int32),
            targets=Ragged.of(answers, np.int64) if any(answers) else None,
        )

    # ---- training and scoring ----------------------------------------------------------------------------------------
    def loss(self, outputs: PassOutputs, batch: Batch) -> Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        losses_M = cross_entropy(_logits(outputs), batch.targets, reduction="none")
        rows_M = torch.arange(len(batch.counts), device=losses_M.device).repeat_interleave(batch.counts)
        return losses_M.new_zeros(len(batch.counts)).index_add(0, rows_M, losses_M)

    def score(self, data: RowSource, split: Split, rows: npt.NDArray[np.int64]) -> Asking[RowScores]:
        first, losses = yield Read(split, rows, self._first_word_and_loss)
        asked = data.encoded(split).take(rows)
        lengths = asked.positions.flat(np.arange(len(asked))).reshape(-1, NUM_WORDS)[:, 0] + 1
        second = yield from self._second_words([asked.ids.row(i)[:n] for i, n in enumerate(lengths)], first)
        counts = data.encoded(split).counts(rows)
        return RowScores(_said(data, first, second), losses.numpy(), counts)

    def predict(self, data: RowSource, questions: EncodedRows, shown: Sequence[str]) -> Asking[list[Prediction]]:
        (first,) = yield Read(questions, np.arange(len(questions)), _first_words)
        second = yield from self._second_words([questions.ids.row(i) for i in range(len(questions))], first)
        answers = _said(data, first, second).tolist()
        return [Prediction(text, answer, None) for text, answer in zip(shown, answers, strict=True)]

    def _second_words(self, asked: Sequence[npt.NDArray[np.int32]], first: Tensor) -> Asking[Tensor]:
        rows = Ragged.of([np.append(ids, word) for ids, word in zip(asked, first.tolist(), strict=True)], np.int32)
        fresh = EncodedRows(rows, positions=Ragged.single((rows.lengths - 1).astype(np.int32)))
        (second,) = yield Read(fresh, np.arange(len(fresh)), _first_words)
        return second

    def _first_word_and_loss(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        return *_first_words(outputs, batch), self.loss(outputs, batch)


def _first_words(outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
    """Return the likeliest token at the first position that each row reads, (n,)."""
    return (_logits(outputs)[batch.counts.cumsum(0) - batch.counts].argmax(-1),)


def _logits(outputs: PassOutputs) -> Tensor:
    assert outputs.project is not None  # there is no head
    return outputs.project(outputs.read)


def _said(data: RowSource, first: Tensor, second: Tensor) -> npt.NDArray[np.str_]:
    words = [data.tokenizer.convert_ids_to_tokens(ids.tolist()) for ids in (first, second)]
    return np.array([" ".join(pair) for pair in zip(*words, strict=True)], np.str_)
