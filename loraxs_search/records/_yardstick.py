"""What a task's rows give without an adapter: the mark that a search has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

YardstickName = Literal["constant", "tfidf", "features"]


@dataclass(frozen=True)
class Yardstick:
    """A simple model of the same train rows, scored on the same validation and test rows as adapters are.

    Args:
        name: `constant` gives every row the same answer, the best one for the metric on the train rows; `tfidf` is a
            linear model on TF-IDF of the texts; `features` is one on the frozen base's mean-pooled hidden states.
        answer: What `constant` says: a label id, a number or a text; None for the others.
        seconds: What it took of one processor core.
        failed: Why it lacks metrics, the test rows' or all; empty when it has both.
    """

    name: YardstickName
    validation_metrics: Mapping[str, float] = field(default_factory=dict)
    test_metrics: Mapping[str, float] = field(default_factory=dict)
    answer: int | float | str | None = None
    seconds: float = 0.0
    failed: str = ""
