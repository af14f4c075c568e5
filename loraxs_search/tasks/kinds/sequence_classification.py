"""One of a task's labels for each text: cross-entropy, and the largest output wins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loraxs_search.records.adapter import Prediction
from loraxs_search.records.literals import Pooling, Split
from loraxs_search.records.task import AnswerFact, TaskModel
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds._base import Fault, Keys
from loraxs_search.tasks.kinds._labelled import LabelledKind, LabelledSection, class_ids, missing_warnings
from loraxs_search.tasks.kinds._requests import Values
from loraxs_search.tasks.metrics import CLASS_METRICS
from loraxs_search.tasks.rows import Rows, SourceLocation

if TYPE_CHECKING:
    from torch import Tensor

_BINARY = ("f1",)  # of the second of two labels


def classifier(num_labels: int, pooling: Pooling = "class") -> TaskModel:
    """Return a classifier of this many labels."""
    config = (("num_labels", num_labels), ("problem_type", "single_label_classification"))
    return TaskModel("AutoModelForSequenceClassification", num_labels, config, pooling)


class SequenceClassification(LabelledKind):
    """One of a list of labels for each text or pair of texts. A head on any base answers.

    Outputs (n, labels); labels and answers are ids.
    """

    name = "sequence-classification"
    section = LabelledSection
    metrics = CLASS_METRICS
    hub_pipeline = "text-classification"

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        labels = keys.get("labels") or []
        if len(labels) < 2:
            yield ("labels",), f"must name at least two labels, in id order, but got {json.dumps(labels)}."
        if len(set(labels)) < len(labels):
            yield ("labels",), f"must differ from each other, but got {list(labels)}."

    @classmethod
    def fitting_metrics(cls, keys: Keys) -> Sequence[str]:
        labels = keys.get("labels")
        return [name for name in cls.metrics if name not in _BINARY or labels is None or len(labels) == 2]

    @classmethod
    def describe(cls, keys: Keys) -> str:
        labels = keys.get("labels")
        return cls.name if labels is None else f"{cls.name} with {len(labels)} labels"

    @property
    def model(self) -> TaskModel:
        return classifier(len(self.task.labels), self.task.pooling)

    def read_labels(
        self, values: Sequence[Any], place: SourceLocation, stored_names: Sequence[str] | None
    ) -> npt.NDArray[Any]:
        return class_ids(values, self.task, place, stored_names)

    def answer_facts(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[AnswerFact]:
        counts = {split: self._counts(own.labels) for split, own in rows.items()}
        for label in np.argsort(-counts["train"], kind="stable"):
            yield AnswerFact(self.task.labels[label], {split: int(own[label]) for split, own in counts.items()})

    def warnings(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[str]:
        labels = self.task.labels
        for split, own in rows.items():
            missing = [name for name, count in zip(labels, self._counts(own.labels), strict=True) if not count]
            yield from missing_warnings(split, "the label", missing)

    def _counts(self, labels: Values) -> npt.NDArray[np.int64]:
        """Return how many rows have each label of the task, (labels,)."""
        return np.bincount(labels.astype(np.int64), minlength=len(self.task.labels))

    def row_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.cross_entropy(outputs.float(), labels, reduction="none")

    def answers(self, outputs: Tensor) -> Values:
        return outputs.argmax(-1).cpu().numpy()

    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        targets = np.zeros((len(labels), len(self.task.labels)), np.float32)
        targets[np.arange(len(labels)), labels.astype(np.int64)] = 1
        return targets

    def prediction(self, text: str, outputs: Tensor) -> Prediction:
        probabilities = dict(zip(self.task.labels, outputs.softmax(-1).tolist(), strict=True))
        best = max(probabilities, key=probabilities.__getitem__)
        return Prediction(text, best, probabilities[best], probabilities)

    def constants(self, labels: Values) -> list[int] | list[float] | list[str]:
        return [int(label) for label in np.argsort(-self._counts(labels), kind="stable")]

    def show(self, answer: float | str) -> str:
        return self.task.labels[int(answer)] if self.task.labels else str(answer)
