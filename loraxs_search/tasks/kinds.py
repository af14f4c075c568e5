"""What a kind of task means for the numbers: outputs, labels, loss, predictions, scores.

A new kind is one more class here and one more entry in `head_for`; nothing that trains or evaluates names a kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from loraxs_search.errors import TaskDataError, TrialDivergedError, unknown_name
from loraxs_search.records import Task
from loraxs_search.tasks._labels import class_ids, numbers
from loraxs_search.tasks._source_location import Place
from loraxs_search.tasks.metrics import METRICS, Values, metric_fault


class TaskHead(Protocol):
    """The contract between a kind of task and the loop that trains it. Stateless and safe to share.

    Args:
        num_labels: Outputs of the model's head.
        label_dtype: Type of `Batch.labels`.
    """

    num_labels: int
    label_dtype: torch.dtype

    def read_labels(
        self, values: Sequence[Any], task: Task, place: Place, stored_names: Sequence[str] | None
    ) -> npt.NDArray[Any]:
        """Return the labels of a stored column, one per row.

        Args:
            place: Where the column is from, for messages.
            stored_names: Label names that the file itself gives to its ids, if any.
        Raises:
            TaskDataError: a value is no label of the task; every different one is named.
        """
        ...

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return each row's loss, shape (B,), float32; a batch's loss is the mean of it."""
        ...

    def predictions(self, logits: Tensor) -> Values:
        """Return each row's answer, shape (B,).

        Raises:
            TrialDivergedError: some logit is not finite.
        """
        ...

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        """Return the task's metrics over all rows, in the task's order, all finite."""
        ...

    def constants(self, labels: Values) -> list[int] | list[float]:
        """Return the answers that are worth giving to every row, the likeliest first."""
        ...

    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        """Return what a least-squares model learns in place of logits, shape (N, num_labels)."""
        ...


class Classification:
    """One label per row: logits (B, num_labels), cross-entropy, the largest logit wins."""

    label_dtype = torch.int64

    def __init__(self, task: Task) -> None:
        self.num_labels = len(task.labels)
        self._metrics = task.metrics

    def read_labels(
        self, values: Sequence[Any], task: Task, place: Place, stored_names: Sequence[str] | None
    ) -> npt.NDArray[Any]:
        return class_ids(values, task, place, stored_names)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), labels, reduction="none")

    def predictions(self, logits: Tensor) -> Values:
        return _finite(logits).argmax(-1).cpu().numpy()

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        return _score(self._metrics, predictions, labels)

    def constants(self, labels: Values) -> list[int] | list[float]:
        counts = np.bincount(labels.astype(np.int64), minlength=self.num_labels)
        return [int(label) for label in np.argsort(-counts, kind="stable")]

    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        return np.eye(self.num_labels, dtype=np.float32)[labels.astype(np.int64)]


class Regression:
    """One number per row: logits (B, 1), squared error, the logit is the answer."""

    label_dtype = torch.float32
    num_labels = 1

    def __init__(self, task: Task) -> None:
        self._metrics = task.metrics

    def read_labels(
        self, values: Sequence[Any], task: Task, place: Place, stored_names: Sequence[str] | None
    ) -> npt.NDArray[Any]:
        return numbers(values, task, place)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.float().squeeze(-1) - labels.float()).square()

    def predictions(self, logits: Tensor) -> Values:
        return _finite(logits).float().squeeze(-1).cpu().numpy()

    def score(self, predictions: Values, labels: Values) -> dict[str, float]:
        return _score(self._metrics, predictions, labels)

    def constants(self, labels: Values) -> list[int] | list[float]:
        numbers = labels.astype(np.float64)
        return [float(numbers.mean()), float(np.median(numbers))]

    def targets(self, labels: Values) -> npt.NDArray[np.float32]:
        return labels.astype(np.float32)[:, None]


_KINDS: dict[str, type[Classification] | type[Regression]] = {
    "sequence-classification": Classification,
    "regression": Regression,
}


def head_for(task: Task) -> TaskHead:
    """Return what the task's kind means.

    Raises:
        TaskDataError: the kind is unknown, a metric does not fit it, or there are fewer than two labels to tell apart.
    """
    if task.kind not in _KINDS:
        raise TaskDataError(f"Task {task.name}: {unknown_name('kind', task.kind, _KINDS)}")
    if task.kind == "sequence-classification" and len(task.labels) < 2:
        raise TaskDataError(f"Task {task.name}: `labels` must name at least two labels, but got {list(task.labels)}.")
    if len(set(task.labels)) < len(task.labels):
        raise TaskDataError(f"Task {task.name}: `labels` must differ from each other, but got {list(task.labels)}.")
    head = _KINDS[task.kind](task)
    faults = [fault for name in task.metrics if (fault := metric_fault(name, task.kind, head.num_labels))]
    if faults:
        raise TaskDataError(f"Task {task.name}: {' '.join(faults)}")
    return head


def _score(metrics: tuple[str, ...], predictions: Values, labels: Values) -> dict[str, float]:
    if len(predictions) != len(labels) or not len(labels):
        raise ValueError(f"One prediction per label is needed, but got {len(predictions)} for {len(labels)}.")
    return {name: METRICS[name].score(np.asarray(predictions), np.asarray(labels)) for name in metrics}


def _finite(logits: Tensor) -> Tensor:
    if not bool(torch.isfinite(logits).all()):
        raise TrialDivergedError("Logits must be finite, but some are NaN or infinite.")
    return logits.detach()
