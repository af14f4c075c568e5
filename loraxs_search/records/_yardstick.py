"""What a task's rows give without an adapter: the mark that a search has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

YardstickName = str  # `constant`, `tfidf`, `features`; `zero-shot`, `4-shot` and the like
_SHOTS = "-shot"
_TOO_SLOW = "it needs "  # so begins what earlier versions say of a linear model that would take too long


@dataclass(frozen=True)
class Yardstick:
    """A simple model of the same train rows, scored on the same validation and test rows as adapters are.

    Args:
        name: `constant` gives every row the same answer, the best one for the metric on the train rows; `tfidf` is a
            linear model on TF-IDF of the texts; `features` is one on the frozen base's mean-pooled hidden states.
            `zero-shot` is the base without an adapter, asked as adapters are, and `4-shot` the same with four worked
            examples in each prompt. Only the better of these on the validation rows answers the test rows.
        answer: What `constant` says: a label id, a number or a text; None for the others.
        test_answers: Of a linear model, its answer to each test row: label ids or numbers. A study keeps them apart.
        seconds: What it took of one processor core.
        failed: Why it lacks metrics, the test rows' or all; empty when it has both.
        applies: Whether one that failed could have been measured: worked examples may not fit into the base's context,
            and a linear model may take too long. None in files of earlier versions, which do not say.
    """

    name: YardstickName
    validation_metrics: Mapping[str, float] = field(default_factory=dict)
    test_metrics: Mapping[str, float] = field(default_factory=dict)
    answer: int | float | str | None = None
    test_answers: tuple[float, ...] = ()
    seconds: float = 0.0
    failed: str = ""
    applies: bool | None = None


BASE_ALONE_ROWS = 200  # validation rows, at most, that choose how the base alone is asked


def shots_name(shots: int) -> YardstickName:
    """Return the name of the base alone with this many worked examples in each prompt."""
    return f"{shots or 'zero'}{_SHOTS}"


def is_alone(name: YardstickName) -> bool:
    """Whether a yardstick is the base without an adapter, asked as adapters are."""
    return name.endswith(_SHOTS)


def is_unmeasured(yardstick: Yardstick) -> bool:
    """Whether a yardstick could not be measured for a reason that may pass; a constant answer can always be had."""
    name, failed, applies = yardstick.name, yardstick.failed, yardstick.applies
    if applies is None:
        applies = name == shots_name(0) if is_alone(name) else not failed.startswith(_TOO_SLOW)
    return name != "constant" and bool(failed) and applies


def alone_yardstick(yardsticks: Iterable[Yardstick]) -> Yardstick | None:
    """Return the base alone as it has answered the test rows; None where it has not."""
    return next((y for y in yardsticks if is_alone(y.name) and y.test_metrics), None)
