"""An adapter's answer to each test row, by which two adapters are compared, and its file format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import IntegrityError

Values = npt.NDArray[Any]
FILE = "test_rows.safetensors"
MAX_BYTES = 2**30  # a row is 17 bytes: sixty million rows


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Answers to every test row, in test order.

    Args:
        predictions: Of the adapter itself, shape (N,): label ids, numbers or texts.
        labels: What they should be, shape (N,).
    """

    predictions: Values
    labels: Values

    @classmethod
    def of(cls, predictions: Sequence[float | str], labels: Sequence[float | str]) -> ScoredRows:
        """Make rows of plain values; whole numbers are label ids."""
        some = [*predictions[:1], *labels[:1]]
        kind: npt.DTypeLike = np.float32 if any(isinstance(value, float) for value in some) else np.int64
        if any(isinstance(value, str) for value in some):
            kind = np.str_
        return cls(np.asarray(predictions, kind), np.asarray(labels, kind))

    def same_rows(self, other: ScoredRows) -> bool:
        """Whether both are answers to the same rows, as far as labels can tell."""
        return self.labels.dtype.kind == other.labels.dtype.kind and np.array_equal(self.labels, other.labels)

    def to_bytes(self) -> bytes:
        """Return a safetensors file: predictions, labels, and for ids and texts whether each answer is correct.

        Texts are stored as bytes of a JSON list.
        """
        from safetensors.numpy import save

        tensors = {"predictions": _stored(self.predictions), "labels": _stored(self.labels)}
        if self.labels.dtype.kind in "iU":
            tensors["correct"] = (self.predictions == self.labels).astype(np.uint8)
        return save(tensors, {"rows": json.dumps({"order": "test"})})

    @classmethod
    def from_bytes(cls, content: bytes) -> ScoredRows:
        """Read back what `to_bytes` wrote.

        Raises:
            IntegrityError: the bytes are no such file.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(content)
            rows = cls(_values(tensors["predictions"]), _values(tensors["labels"]))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise IntegrityError(f"{FILE} must hold predictions and labels, but: {error}.") from error
        if rows.predictions.shape != rows.labels.shape:
            raise IntegrityError(f"{FILE} must have an answer a row, but got shapes {rows.predictions.shape}.")
        return rows


def _stored(values: Values) -> Values:
    if values.dtype.kind != "U":
        return values
    return np.frombuffer(json.dumps(values.tolist()).encode(), np.uint8)


def _values(stored: Values) -> Values:
    return np.array(json.loads(stored.tobytes()), np.str_) if stored.dtype == np.uint8 else stored
