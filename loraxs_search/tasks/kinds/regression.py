"""A number for each text: squared error in units of the spread of the train rows."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loraxs_search.records.adapter import Prediction
from loraxs_search.records.literals import Pooling, Split
from loraxs_search.records.task import AnswerFact, OutputScale, TaskModel
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds._base import Fault, Keys
from loraxs_search.tasks.kinds._labelled import LabelledKind, LabelledSection, numbers
from loraxs_search.tasks.kinds._requests import Values
from loraxs_search.tasks.metrics import NUMBER_METRICS
from loraxs_search.tasks.rows import Rows, SourceLocation

if TYPE_CHECKING:
    from torch import Tensor


_FAR = 5.0  # spreads between zero and the mean from which a head without a bias learns badly
_OUTLYING = 200.0  # times the range of the middle half of the numbers


def regressor(pooling: Pooling = "class") -> TaskModel:
    """Return a model with one output."""
    config = (("num_labels", 1), ("problem_type", "regression"))
    return TaskModel("AutoModelForSequenceClassification", 1, config, pooling)


class Regression(LabelledKind):
    """A number for each text, learnt standardised by the training rows. A head on any base answers.

    Outputs (n, 1); labels are float32, and answers float64: near 150,000 float32 has steps of 1/64.
    AdamW moves an output by about its learning rate, so a head learns prices of 150,000 only once they are
    standardised.
    """

    name = "regression"
    has_right_answers = False
    section = LabelledSection
    metrics = NUMBER_METRICS

    @classmethod
    def fields(cls, section: Any) -> dict[str, Any]:
        return super().fields(section) | {"standardized": True}

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        if labels := keys.get("labels"):
            yield ("labels",), f"must be left out for kind: {cls.name}, but got {json.dumps(labels)}."

    @property
    def model(self) -> TaskModel:
        return regressor(self.task.pooling)

    def read_labels(
        self, values: Sequence[Any], place: SourceLocation, stored_names: Sequence[str] | None
    ) -> npt.NDArray[Any]:
        return numbers(values, self.task, place)

    def answer_facts(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[AnswerFact]:
        numbers = {split: own.labels.astype(np.float64) for split, own in rows.items()}
        for name, method in {"mean": "mean", "spread": "std", "least": "min", "most": "max"}.items():
            yield AnswerFact(name, {split: float(getattr(own, method)()) for split, own in numbers.items()})

    def fitted(self, labels: Values, *, has_bias: bool) -> Regression:
        if not self.task.standardized:
            return self
        values = labels.astype(np.float64)
        mean = float(values.mean()) if has_bias else 0.0
        spread = float(np.sqrt(np.square(values - mean).mean()))
        fitted = copy.copy(self)
        fitted.outputs = OutputScale(mean, spread or 1.0)
        return fitted

    def warnings(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[str]:
        values = rows["train"].labels.astype(np.float64)
        mean, spread = float(values.mean()), float(values.std())
        low, middle, high = np.percentile(values, [25, 50, 75])
        place, odd = rows["train"].place, int(np.abs(values - middle).argmax())
        if 0 < _OUTLYING * (high - low) < abs(values[odd] - middle):
            where = f" ({place.row(odd)})" if place is not None else ""
            yield (
                f"the number {values[odd]:.4g}{where} is far from the others, half of which are {low:.4g} to"
                f" {high:.4g}: it outweighs them, so correct it if it is a mistake"
            )
        if np.ptp(values) == 0:
            yield f"every train row has the number {mean:.4g}, so nothing can be learnt"
        elif self.outputs.mean == 0 and self.task.standardized and abs(mean) > _FAR * spread:
            yield (
                f"the numbers are {mean:.4g} with a spread of {spread:.4g}, and the head of this base has no bias:"
                f" subtract {mean:.4g} from them, or use a base with one"
            )

    def row_losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        scale = self.outputs
        return (outputs.float().squeeze(-1) - (labels.float() - scale.mean) / scale.spread).square()

    def answers(self, outputs: Tensor) -> Values:
        numbers: Values = (outputs.squeeze(-1).cpu().double() * self.outputs.spread + self.outputs.mean).numpy()
        return numbers

    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        standard = (labels.astype(np.float64) - self.outputs.mean) / self.outputs.spread
        return standard.astype(np.float32)[:, None]

    def prediction(self, text: str, outputs: Tensor) -> Prediction:
        return Prediction(text, None, float(self.answers(outputs[None])[0]))

    def constants(self, labels: Values) -> list[int] | list[float] | list[str]:
        values = labels.astype(np.float64)
        return [float(values.mean()), float(np.median(values))]

    def show(self, answer: float | str) -> str:
        return format(float(answer), ".4g")
