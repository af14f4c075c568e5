"""One of a task's labels for each text: cross-entropy, and the largest output wins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loraxs_search.records import Prediction, TaskModel
from loraxs_search.tasks._labels import class_ids
from loraxs_search.tasks._source_location import SourceLocation
from loraxs_search.tasks.kinds._base import Fault, Keys
from loraxs_search.tasks.kinds._labelled import LabelledKind, LabelledSection
from loraxs_search.tasks.kinds._requests import Values
from loraxs_search.tasks.metrics import CLASS_METRICS

if TYPE_CHECKING:
    from torch import Tensor

_BINARY = ("f1",)  # of the second of two labels


def classifier(num_labels: int) -> TaskModel:
    """Return a classifier of this many labels."""
    config = (("num_labels", num_labels), ("problem_type", "single_label_classification"))
    return TaskModel("AutoModelForSequenceClassification", num_labels, config)


class SequenceClassification(LabelledKind):
    """Outputs (n, labels); labels and answers are ids."""

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
        return classifier(len(self.task.labels))

    def read_labels(
        self, values: Sequence[Any], place: SourceLocation, stored_names: Sequence[str] | None
    ) -> npt.NDArray[Any]:
        return class_ids(values, self.task, place, stored_names)

    def row_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        from torch.nn import functional

        return functional.cross_entropy(outputs.float(), labels, reduction="none")

    def answers(self, outputs: Tensor) -> Values:
        return outputs.argmax(-1).cpu().numpy()

    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        return np.eye(len(self.task.labels), dtype=np.float32)[labels.astype(np.int64)]

    def prediction(self, text: str, outputs: Tensor) -> Prediction:
        probabilities = outputs.softmax(-1)
        best = int(probabilities.argmax())
        return Prediction(text, self.task.labels[best], float(probabilities[best]))

    def constants(self, labels: Values) -> list[int] | list[float] | list[str]:
        counts = np.bincount(labels.astype(np.int64), minlength=len(self.task.labels))
        return [int(label) for label in np.argsort(-counts, kind="stable")]

    def show(self, answer: float | str) -> str:
        return self.task.labels[int(answer)] if self.task.labels else str(answer)
