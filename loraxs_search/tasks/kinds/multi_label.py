"""The kind of several labels a text: topics, emotions, tags."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

from loraxs_search.records.adapter import Prediction
from loraxs_search.records.codec import Law, Split, Text, distinct
from loraxs_search.records.task import AnswerFact, Task
from loraxs_search.tasks.encoded import Batch, EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds._base import Fault, ForwardRequest, Keys, PassOutputs, Predicting, finite
from loraxs_search.tasks.kinds.labelled import (
    LabelledKind,
    LabelledSection,
    SequenceClassification,
    class_ids,
    missing_warnings,
)
from loraxs_search.tasks.metrics import LABEL_SET_METRICS, Values, label_set
from loraxs_search.tasks.rows import SEPARATOR, Columns, Rows, SourceLocation, items_of, refuse

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_NO_LABEL = "no label"  # as people read it
# Measured on GoEmotions of 7 labels, 3,500 train rows, a linear head: micro F1 .473 at 0.5, .571 at 0.3, and .569 with
# thresholds of each label's own, chosen on 1,500 validation rows.
_THRESHOLD = 0.3
_SCALE = 10.0  # of the outputs of a linear model, so that a label's target is above 0 where it is true, else below


class _LabelSetSection(LabelledSection):
    """Any number of labels for each text or pair of texts: lists, or names with `|` between them."""

    labels: Annotated[list[Text], Law(distinct)] = []  # noqa: RUF012  # pydantic copies it
    """Names of the labels in the order of their ids, at least two, without `|`."""
    threshold: Annotated[float, Law(ge=0.01, le=0.99)] = _THRESHOLD
    """Labels of at least this probability are answered. The best one for an F1 is about half of the F1 reached."""


class MultiLabel(LabelledKind):
    """Any number of labels for each text or pair of texts, such as topics. A head on any base answers.

    Outputs (n, labels), each of one label by itself. A row's labels are one text with `|` between, in the order of
    their ids, as label and as answer; the empty text is a row without any.
    """

    name = "multi-label"
    section = _LabelSetSection
    metrics = LABEL_SET_METRICS
    problem_type = "multi_label_classification"
    hub_pipeline = "text-classification"
    gives_confidences = True
    is_exclusive = False
    asking = frozenset({"threshold"})

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._threshold = float(task.settings.get("threshold", _THRESHOLD))
        self.answer_rule = f"all labels whose probability, the sigmoid of the logit, is at least {self._threshold:g}"
        self._least = math.log(self._threshold / (1 - self._threshold))  # output of a label that is answered

    @classmethod
    def fields(cls, section: Any) -> dict[str, Any]:
        return super().fields(section) | {"settings": {"threshold": section.threshold}}

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        yield from SequenceClassification.laws(keys)
        if wrong := [label for label in keys.get("labels") or () if SEPARATOR in label]:
            yield ("labels",), f"must have no {SEPARATOR}, which stands between them, but got {json.dumps(wrong)}."

    # ---- rows to tokens ----------------------------------------------------------------------------------------------
    def read_labels(self, columns: Columns, place: SourceLocation) -> npt.NDArray[Any]:
        task, values = self.task, columns.values[self.task.label]
        lists = [
            [name for name in map(str.strip, it.split(SEPARATOR)) if name] if isinstance(it, str) else it
            for it in map(items_of, values)
        ]
        faults = [row for row, own in enumerate(lists) if not isinstance(own, list)]
        refuse(task, f"`{task.label}` must be a list, or labels with {SEPARATOR} between", values, faults, place)
        where = place.take(np.repeat(np.arange(len(lists)), [len(own) for own in lists]))
        ids = iter(class_ids([item for own in lists for item in own], task, where, columns.stored_names).tolist())
        return self._joined(set(islice(ids, len(own))) for own in lists)

    def asked(self, rows: Sequence[tuple[Any, ...]], place: SourceLocation) -> Rows:
        return replace(super().asked(rows, place), labels=np.full(len(rows), "", object))

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
        is_true = (self.targets(rows.labels) > 0).astype(np.int8)
        lengths = np.full(len(rows), len(self.task.labels))
        return replace(super().encode(rows, tokenizer), targets=Ragged.joined(is_true.ravel(), lengths))

    def answer_facts(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[AnswerFact]:
        counts = {split: self._counts(own.labels) for split, own in rows.items()}
        for name in sorted(self.task.labels, key=lambda name: -counts["train"][name]):
            yield AnswerFact(name, {split: own[name] for split, own in counts.items()})
        yield AnswerFact(_NO_LABEL, {split: own[""] for split, own in counts.items()})

    def warnings(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[str]:
        for split, own in rows.items():
            counts = self._counts(own.labels)
            yield from missing_warnings(split, "the label", [name for name in self.task.labels if not counts[name]])

    # ---- training and scoring ----------------------------------------------------------------------------------------
    def loss(self, outputs: PassOutputs, batch: Batch) -> Tensor:
        from torch.nn import functional

        read_nL = outputs.read.float()
        targets_nL = batch.targets.float().view_as(read_nL)
        return functional.binary_cross_entropy_with_logits(read_nL, targets_nL, reduction="none").mean(-1)

    def answers(self, outputs: Tensor) -> Values:
        return self._joined(np.flatnonzero(row) for row in (finite(outputs) >= self._least).cpu().numpy())

    def confidences(self, outputs: Tensor) -> npt.NDArray[np.float32]:
        """Return how likely it is that a row has the labels that are answered and no others: each is by itself."""
        shares = outputs.sigmoid()
        return shares.where(outputs >= self._least, 1 - shares).prod(-1).numpy()

    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        rows = {text: [name in label_set(text) for name in self.task.labels] for text in labels}
        is_true = np.array([rows[text] for text in labels], np.float32).reshape(len(labels), -1)
        return np.float32(self._least) + np.float32(_SCALE) * (is_true - np.float32(self._threshold))

    def predict(self, data: RowSource, questions: EncodedRows, shown: Sequence[str]) -> Predicting:
        (outputs,) = yield ForwardRequest(questions, np.arange(len(questions)), lambda outputs, _: (outputs.read,))
        answers, scores = self.answers(outputs), self.confidences(outputs).tolist()
        shares = (dict(zip(self.task.labels, own, strict=True)) for own in outputs.sigmoid().tolist())
        return [Prediction(*row) for row in zip(shown, answers, scores, shares, strict=True)]

    # ---- baselines, and what people read -----------------------------------------------------------------------------
    def constants(self, labels: Values) -> list[Any]:
        """Return the most frequent sets, and the most frequent labels, which together are best by an F1."""
        sets, counts = super().constants(labels), self._counts(labels)
        by_count = sorted(range(len(self.task.labels)), key=lambda label: -counts[self.task.labels[label]])
        tops = self._joined(by_count[:size] for size in range(1, 1 + min(len(by_count), self.most_constants // 2)))
        return list(dict.fromkeys((*sets[: self.most_constants // 2], *tops)))

    def show(self, answer: float | str) -> str:
        return str(answer) or _NO_LABEL

    def _joined(self, rows: Iterable[Iterable[int]]) -> Values:
        """Return the labels of rows, given as ids, each row as one text."""
        return np.array([SEPARATOR.join(self.task.labels[label] for label in sorted(own)) for own in rows], object)

    def _counts(self, labels: Values) -> Counter[str]:
        """Return how many rows have each label; the empty text counts rows without any."""
        return Counter(name for text in labels for name in label_set(text) or ("",))
