"""The kind of ordered levels, such as stars from 1 to 5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt

from loraxs_search.records.codec import Law, Text, distinct
from loraxs_search.records.task import Task
from loraxs_search.tasks.encoded import EncodedRows, RowSource
from loraxs_search.tasks.kinds._base import Predicting, finite
from loraxs_search.tasks.kinds.labelled import LabelledSection, SequenceClassification, finite_number
from loraxs_search.tasks.metrics import LEVEL_METRICS, Values

if TYPE_CHECKING:
    from torch import Tensor


_SCALE = np.float32(10)  # of a linear model's outputs, from which probabilities are made


class _LevelsSection(LabelledSection):
    """One of a few ordered levels for each text or pair of texts."""

    labels: Annotated[list[Text], Law(distinct)] = []  # noqa: RUF012  # pydantic copies it
    """Names of the levels, lowest first, at least two. Where all are numbers, a prediction's `expected` is on their
    scale, else on that of their places from 0."""


class Ordinal(SequenceClassification):
    """One of a few ordered levels for each text, such as stars from 1 to 5. A head on any base answers.

    Outputs (n, levels); labels and answers are ids. The answer is the median, the lowest level that half of the
    probability is at or below: it errs least. Measured with linear heads on film reviews (5 levels) and STS (6), three
    seeds: mean absolute errors .912 and .844, of the likeliest level .970 and .971. A cumulative link has .901 and
    .821, but its outputs are no logits of levels, as readers of exports expect them.
    """

    name = "ordinal"
    section = _LevelsSection
    metrics = LEVEL_METRICS
    answer_rule = "the median level, the lowest one that half of the probability is at or below"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.levels = task.labels
        numbers = [number for name in task.labels if (number := finite_number(name)) is not None]
        self._numbers = numbers if len(numbers) == len(task.labels) else list(map(float, range(len(task.labels))))

    def answers(self, outputs: Tensor) -> Values:
        below = finite(outputs).softmax(-1).cumsum(-1)[:, :-1]
        answers: Values = (below < 0.5).sum(-1).cpu().numpy()
        return answers

    def confidences(self, outputs: Tensor) -> npt.NDArray[np.float32]:
        return np.take_along_axis(outputs.softmax(-1).numpy(), self.answers(outputs)[:, None], 1)[:, 0]

    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        return _SCALE * super().targets(labels)

    def predict(self, data: RowSource, questions: EncodedRows, shown: Sequence[str]) -> Predicting:
        answers = yield from super().predict(data, questions, shown)
        levels = [(it.probabilities or {}).values() for it in answers]
        means = [sum(number * share for number, share in zip(self._numbers, own, strict=True)) for own in levels]
        return [replace(answer, expected=mean) for answer, mean in zip(answers, means, strict=True)]
