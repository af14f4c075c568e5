"""A task kind from outside the package: answers of two words, which a language model without a head reads and says.

It reads two positions of a row, learns both, and is scored in two passes: the second asks for the word after the one
that the first has answered. Reports take the loss of the first alone. The untouched base is asked with and without
worked examples. Tests write this file into a distribution of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.codec import Split, Text
from loraxs_search.records.task import Task, TaskModel
from loraxs_search.tasks.kinds import (
    TEXT_METRICS,
    Columns,
    EncodedRows,
    Fault,
    ForwardRequest,
    Keys,
    Metric,
    PassOutputs,
    Ragged,
    RequestGenerator,
    Rows,
    RowScores,
    Section,
    SourceLocation,
    TaskKind,
)
from loraxs_search.tasks.metrics import TOKEN_METRICS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from loraxs_search.tasks.encoded import Batch, RowSource

NUM_WORDS = 2


def _words_right(predictions: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    pairs = zip(predictions.tolist(), labels.tolist(), strict=True)
    return np.array([float(bool(set(said.split()) & set(label.split()))) for said, label in pairs])


class WordPairsSection(Section):
    """`ask` and `answer`: columns of the data."""

    ask: Text
    answer: Text


class WordPairs(TaskKind):
    """Labels and predictions are texts of two words."""

    name = "word-pairs"
    section = WordPairsSection
    metrics = {  # noqa: RUF012
        "exact_match": TEXT_METRICS["exact_match"],  # as the package's own kind has it
        "one_word": Metric("one_word", "maximize", of_rows=_words_right),
        **TOKEN_METRICS,
    }
    report_metric = "loss"
    shots = (0, 4)
    hub_pipeline = "text-generation"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.model = TaskModel("AutoModelForCausalLM")
        self.columns, self.question_columns = task.settings, ("question",)

    @classmethod
    def fields(cls, section: Any) -> dict[str, Any]:
        return {"text": "", "label": "", "settings": {"ask": section.ask, "answer": section.answer}}

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        if "ask" in keys and keys["ask"] == keys.get("answer"):
            yield ("answer",), f"must be another column than `ask`, but got {keys['ask']!r}."

    # ---- rows to tokens ----------------------------------------------------------------------------------------------
    def read(self, columns: Columns, place: SourceLocation) -> Rows:
        answers = columns.values[self.columns["answer"]]
        if faults := [row for row, answer in enumerate(answers) if len(str(answer).split()) != NUM_WORDS]:
            raise TaskDataError(
                f"Task {self.task.name}: `answer` must be two words, but {place.name} has"
                f" {place.values(answers, faults)}.",
                hint="correct the rows",
            )
        return Rows(list(map(str, columns.values[self.columns["ask"]])), None, np.array(answers, object))

    def asked(self, rows: Sequence[tuple[Any, ...]], place: SourceLocation) -> Rows:
        return Rows([row[0] for row in rows], None, np.array([""] * len(rows), object))

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

    def score(self, data: RowSource, split: Split, rows: npt.NDArray[np.int64]) -> RequestGenerator[RowScores]:
        first, losses, correct = yield ForwardRequest(split, rows, self._first_word_and_loss)
        counts = data.encoded(split).counts(rows)
        scores = RowScores(None, losses.numpy(), counts, correct.numpy())
        if not self.reports_answers:
            return scores
        second = yield from self._second_words(_questions(data.encoded(split).take(rows)), first)
        return replace(scores, predictions=_said(data, first, second), ended=np.ones(len(rows), np.bool_))

    def base_alone(
        self, data: RowSource, split: Split, rows: npt.NDArray[np.int64], shots: int
    ) -> RequestGenerator[RowScores]:
        learnt = data.encoded("train")
        examples = [learnt.ids.row(i) for i in range(shots)]
        shown = np.concatenate([np.empty(0, np.int32), *examples])[-(self.task.max_length - NUM_WORDS) :]
        scores = yield from self.score(data, split, rows)
        asked = [np.append(shown, ids).astype(np.int32) for ids in _questions(data.encoded(split).take(rows))]
        source = EncodedRows(
            Ragged.of(asked, np.int32), positions=Ragged.of([[len(ids) - 1] for ids in asked], np.int32)
        )
        (first,) = yield ForwardRequest(source, np.arange(len(source)), _first_words)
        second = yield from self._second_words(asked, first)
        return replace(scores, predictions=_said(data, first, second))

    def predict(
        self, data: RowSource, questions: EncodedRows, shown: Sequence[str]
    ) -> RequestGenerator[list[Prediction]]:
        (first,) = yield ForwardRequest(questions, np.arange(len(questions)), _first_words)
        if bool((first < 0).any()):
            raise TrialDivergedError("Logits must be finite, but some are NaN or infinite.")
        second = yield from self._second_words([questions.ids.row(i) for i in range(len(questions))], first)
        answers = _said(data, first, second).tolist()
        return [Prediction(text, answer, None) for text, answer in zip(shown, answers, strict=True)]

    def _second_words(self, asked: Sequence[npt.NDArray[np.int32]], first: Tensor) -> RequestGenerator[Tensor]:
        rows = Ragged.of([np.append(ids, word) for ids, word in zip(asked, first.tolist(), strict=True)], np.int32)
        fresh = EncodedRows(rows, positions=Ragged.single((rows.lengths - 1).astype(np.int32)))
        (second,) = yield ForwardRequest(fresh, np.arange(len(fresh)), _first_words)
        return second

    def _first_word_and_loss(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        right = (_logits(outputs).argmax(-1) == batch.targets).long()
        return *_first_words(outputs, batch), self.loss(outputs, batch), right.reshape(-1, NUM_WORDS).sum(1)


def _questions(rows: EncodedRows) -> list[npt.NDArray[np.int32]]:
    """Return each row's tokens without its answer."""
    assert rows.positions is not None
    lengths = rows.positions.flat(np.arange(len(rows))).reshape(-1, NUM_WORDS)[:, 0] + 1
    return [rows.ids.row(i)[:length] for i, length in enumerate(lengths)]


def _first_words(outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
    """Return the likeliest token at the first position that each row reads, (n,); -1 where numbers are not finite."""
    logits = _logits(outputs)[batch.counts.cumsum(0) - batch.counts]
    return (logits.argmax(-1).masked_fill(~logits.isfinite().all(-1), -1),)


def _logits(outputs: PassOutputs) -> Tensor:
    assert outputs.project is not None  # there is no head
    return outputs.project(outputs.read)


def _said(data: RowSource, first: Tensor, second: Tensor) -> npt.NDArray[np.object_]:
    words = [data.tokenizer.convert_ids_to_tokens(ids.tolist()) for ids in (first, second)]
    return np.array([" ".join(pair) for pair in zip(*words, strict=True)], object)
