"""From logits to what a person reads."""

from __future__ import annotations

from torch import Tensor

from loraxs_search.records import Prediction, Task


def answer(task: Task, text: str, logits: Tensor) -> Prediction:
    """Return the most likely label and its probability or, for a task without labels, the number.

    Args:
        logits: Of one row, shape (labels,), float32.
    """
    if not task.labels:
        return Prediction(text, None, float(logits[0]))
    probabilities = logits.softmax(-1)
    best = int(probabilities.argmax())
    return Prediction(text, task.labels[best], float(probabilities[best]))
