"""The common part of kinds that read one or two texts through a head, and give them one label."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.literals import Pooling, Split
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds._base import LinearForm, TaskKind
from loraxs_search.tasks.kinds._label_columns import are_hidden
from loraxs_search.tasks.kinds._requests import ForwardRequest, PassOutputs, RequestGenerator, RowScores, Values
from loraxs_search.tasks.kinds._section import Section, Text, distinct
from loraxs_search.tasks.rows import (
    Columns,
    Rows,
    SourceLocation,
    check_question,
    check_texts,
    collected,
    raise_joined,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from loraxs_search.tasks.batch import Batch, RowSource


_SEPARATOR = "pair_separator"  # in `settings`: stands between two texts; tasks of before it have none


class ColumnsSection(Section):
    """The columns that are read. `a.b` is what `b` holds inside the column `a`."""

    text: Text
    """Column with the text."""
    label: Text
    """Column with the answer."""
    text_pair: Text | None = None
    """Column with the second text, for pairs. A tokenizer that puts nothing between the two gets a line break."""


class LabelledSection(Section):
    """One answer for each text or pair of texts."""

    columns: ColumnsSection
    """Which columns hold what."""
    labels: Annotated[list[Text], AfterValidator(distinct)] = []  # noqa: RUF012  # pydantic copies it
    """Names of the labels in the order of their ids, at least two. A regression has none."""
    pooling: Pooling = "auto"
    """Which last hidden states the head reads: the first token's (`cls`), the last token's (`last`), their `mean`, or
    what the base's class reads (`class`, such as BERT's pooler). `auto` is what a base of sentence-transformers was
    trained with, else `class`; it is decided at launch."""


class LabelledKind(TaskKind):
    """One label for each row: a head reads the row, and its output is the answer."""

    asking = frozenset({_SEPARATOR})

    @classmethod
    def fields(cls, section: Any) -> dict[str, Any]:
        columns = section.columns
        fields = {"text": columns.text, "text_pair": columns.text_pair, "label": columns.label}
        settings = {} if columns.text_pair is None else {_SEPARATOR: "\n"}
        return {**fields, "labels": tuple(section.labels), "pooling": section.pooling, "settings": settings}

    def keys(self) -> dict[str, Any]:
        task = self.task
        columns = {"text": task.text, "text_pair": task.text_pair, "label": task.label}
        return {"columns": columns, "labels": list(task.labels), "pooling": task.pooling}

    @abstractmethod
    def read_labels(
        self, values: Sequence[Any], place: SourceLocation, stored_names: Sequence[str] | None
    ) -> npt.NDArray[Any]:
        """Return the labels of a stored column, (N,).

        Args:
            stored_names: Label names that the data themselves give to their ids, if any.
        Raises:
            TaskDataError: a value is no label of the task; every different one is named.
        """

    @abstractmethod
    def row_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return each row's loss, (n,), float32, of outputs (n, num_outputs)."""

    @abstractmethod
    def answers(self, outputs: Tensor) -> Values:
        """Return each row's answer, (n,), of finite outputs (n, num_outputs) on any device."""

    @abstractmethod
    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        """Return what a least-squares model learns in place of outputs, (N, num_outputs)."""

    @abstractmethod
    def prediction(self, text: str, outputs: Tensor) -> Prediction:
        """Return what people read of one row, of outputs (num_outputs,), float32."""

    def predictions(self, outputs: Tensor) -> Values:
        """Return each row's answer, (n,).

        Raises:
            TrialDivergedError: some output is not finite.
        """
        _check_finite(outputs)
        return self.answers(outputs.detach())

    # ---- rows to tokens ----------------------------------------------------------------------------------------------
    @property
    def columns(self) -> dict[str, str]:
        roles = {"columns.text": self.task.text, "columns.text_pair": self.task.text_pair}
        return {role: name for role, name in roles.items() if name is not None} | {"columns.label": self.task.label}

    def read(self, columns: Columns, place: SourceLocation) -> Rows:
        task, errors, texts = self.task, list[TaskDataError](), dict[str, list[str]]()
        for column in filter(None, (task.text, task.text_pair)):
            with collected(errors):
                texts[column] = check_texts(columns.values[column], task, column, place)
        with collected(errors):
            labels = self.read_labels(columns.values[task.label], place, columns.stored_names)
        raise_joined(task, errors)
        return Rows(texts[task.text], None if task.text_pair is None else texts[task.text_pair], labels)

    def hides_answers(self, columns: Columns) -> bool:
        return are_hidden(columns.values[self.task.label], self.task.labels)

    @property
    def question_texts(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.task.text, self.task.text_pair)))

    def questions(self, rows: Sequence[tuple[Any, ...]]) -> Rows:
        check_question(self.task, rows, self.question_texts)
        pairs = None if self.task.text_pair is None else [row[1] for row in rows]
        return Rows([row[0] for row in rows], pairs, np.zeros(len(rows), np.int64))

    def _pairs(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Sequence[str] | None:
        """Return second texts as the tokenizer is given them: where it puts nothing between two, behind a separator."""
        add = tokenizer.num_special_tokens_to_add
        separator = self.task.settings.get(_SEPARATOR, "")
        if rows.pairs is None or add(pair=True) > add(pair=False):
            return rows.pairs
        return [separator + pair for pair in rows.pairs]

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
        _, encoded = cut_tokens(rows.texts, self._pairs(rows, tokenizer), tokenizer, self.task.max_length)
        return replace(encoded, targets=Ragged.single(rows.labels))

    # ---- training and scoring ----------------------------------------------------------------------------------------
    def loss(self, outputs: PassOutputs, batch: Batch) -> Tensor:
        return self.row_losses(outputs.read, batch.targets)

    def score(self, data: RowSource, split: Split, rows: npt.NDArray[np.int64]) -> RequestGenerator[RowScores]:
        outputs, losses = yield ForwardRequest(split, rows, self._outputs_and_losses)
        return RowScores(self.predictions(outputs), losses.numpy(), np.ones(len(rows), np.int64))

    def predict(
        self, data: RowSource, questions: EncodedRows, shown: Sequence[str]
    ) -> RequestGenerator[list[Prediction]]:
        (outputs,) = yield ForwardRequest(questions, np.arange(len(questions)), _outputs)
        _check_finite(outputs)
        return [self.prediction(text, row) for text, row in zip(shown, outputs, strict=True)]

    def _outputs_and_losses(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        return outputs.read, self.loss(outputs, batch)

    # ---- baselines ---------------------------------------------------------------------------------------------------
    def linear(self) -> LinearForm | None:
        def answers(values: npt.NDArray[Any]) -> Values:
            import torch

            return self.predictions(torch.from_numpy(np.ascontiguousarray(values)))

        return LinearForm(self.model.num_outputs or 0, self.targets, answers)


def _outputs(outputs: PassOutputs, _: Batch) -> tuple[Tensor, ...]:
    return (outputs.read,)


def _check_finite(outputs: Tensor) -> None:
    if not bool(outputs.isfinite().all()):
        raise TrialDivergedError("Logits must be finite, but some are NaN or infinite.")


def cut_tokens(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    **options: bool,
) -> tuple[Any, EncodedRows]:
    """Return what a tokenizer makes of texts, cut to `max_length` tokens, and the same as rows.

    Full rows are tokenised again, to count the tokens that they lost.

    Args:
        pairs: Second texts, as the tokenizer is given them; None if rows have one text.
        options: Of the tokenizer's call.
    """
    plain: dict[str, Any] = {"padding": False, "return_attention_mask": False}
    encoding = tokenizer(texts, pairs, truncation=True, max_length=max_length, **plain, **options)
    types, ids = encoding.get("token_type_ids"), Ragged.of(encoding["input_ids"], np.int32)
    lost, full = np.zeros(len(texts), np.int32), np.flatnonzero(ids.lengths >= max_length).tolist()
    if full:
        again = [texts[row] for row in full], None if pairs is None else [pairs[row] for row in full]
        whole = tokenizer(*again, truncation=False, verbose=False, **plain)["input_ids"]
        lost[full] = np.array([*map(len, whole)], np.int32) - ids.lengths[full]
    return encoding, EncodedRows(ids, None if types is None else Ragged.of(types, np.int8).values, lost=lost)
