"""The kind of ordered levels, such as stars from 1 to 5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from loraxs_search.records.codec import Law, Text, distinct
from loraxs_search.records.task import Task
from loraxs_search.tasks.encoded import EncodedRows, RowSource
from loraxs_search.tasks.kinds._base import Predicting
from loraxs_search.tasks.kinds.labelled import LabelledSection, SequenceClassification, finite_number
from loraxs_search.tasks.metrics import LEVEL_METRICS


class _LevelsSection(LabelledSection):
    """One of a few ordered levels for each text or pair of texts."""

    labels: Annotated[list[Text], Law(distinct)] = []  # noqa: RUF012  # pydantic copies it
    """Names of the levels, lowest first, at least two. Where all are numbers, a prediction's `expected` is on their
    scale, else on that of their places from 0."""


class Ordinal(SequenceClassification):
    """One of a few ordered levels for each text, such as stars from 1 to 5. A head on any base answers.

    Outputs (n, levels); labels and answers are ids.
    """

    name = "ordinal"
    section = _LevelsSection
    metrics = LEVEL_METRICS

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.levels = task.labels
        numbers = [number for name in task.labels if (number := finite_number(name)) is not None]
        self._numbers = numbers if len(numbers) == len(task.labels) else list(map(float, range(len(task.labels))))

    def predict(self, data: RowSource, questions: EncodedRows, shown: Sequence[str]) -> Predicting:
        answers = yield from super().predict(data, questions, shown)
        levels = [(it.probabilities or {}).values() for it in answers]
        means = [sum(number * share for number, share in zip(self._numbers, own, strict=True)) for own in levels]
        return [replace(answer, expected=mean) for answer, mean in zip(answers, means, strict=True)]
