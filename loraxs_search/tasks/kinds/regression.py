"""A number for each text: squared error, and the output is the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loraxs_search.records import AnswerFact, Prediction, Split, TaskModel
from loraxs_search.tasks._labels import numbers
from loraxs_search.tasks._source_location import SourceLocation
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds._base import Fault, Keys
from loraxs_search.tasks.kinds._labelled import LabelledKind, LabelledSection
from loraxs_search.tasks.kinds._requests import Values
from loraxs_search.tasks.metrics import NUMBER_METRICS
from loraxs_search.tasks.rows import Rows

if TYPE_CHECKING:
    from torch import Tensor


def regressor() -> TaskModel:
    """Return a model with one output."""
    config = (("num_labels", 1), ("problem_type", "regression"))
    return TaskModel("AutoModelForSequenceClassification", 1, config)


class Regression(LabelledKind):
    """Outputs (n, 1); labels and answers are numbers, float32."""

    name = "regression"
    section = LabelledSection
    metrics = NUMBER_METRICS

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        if labels := keys.get("labels"):
            yield ("labels",), f"must be left out for kind: {cls.name}, but got {json.dumps(labels)}."

    @property
    def model(self) -> TaskModel:
        return regressor()

    def read_labels(
        self, values: Sequence[Any], place: SourceLocation, stored_names: Sequence[str] | None
    ) -> npt.NDArray[Any]:
        return numbers(values, self.task, place)

    def answer_facts(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[AnswerFact]:
        numbers = {split: own.labels.astype(np.float64) for split, own in rows.items()}
        for name, method in {"mean": "mean", "spread": "std", "least": "min", "most": "max"}.items():
            yield AnswerFact(name, {split: float(getattr(own, method)()) for split, own in numbers.items()})

    def row_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.float().squeeze(-1) - labels.float()).square()

    def answers(self, outputs: Tensor) -> Values:
        return outputs.float().squeeze(-1).cpu().numpy()

    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        return labels.astype(np.float32)[:, None]

    def prediction(self, text: str, outputs: Tensor) -> Prediction:
        return Prediction(text, None, float(outputs[0]))

    def constants(self, labels: Values) -> list[int] | list[float] | list[str]:
        values = labels.astype(np.float64)
        return [float(values.mean()), float(np.median(values))]

    def show(self, answer: float | str) -> str:
        return format(float(answer), ".4g")
