"""An adapter's answers to the test rows, one by one: what two adapters are compared by, and a small file of them."""

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
        predictions: Of the adapter itself, shape (N,): label ids, or numbers for regression.
        labels: What they should be, shape (N,).
    """

    predictions: Values
    labels: Values

    @classmethod
    def of(cls, predictions: Sequence[float], labels: Sequence[float]) -> ScoredRows:
        """Make rows of plain numbers; whole ones are label ids."""
        whole = not any(isinstance(value, float) for value in (*predictions[:1], *labels[:1]))
        kind = np.int64 if whole else np.float32
        return cls(np.asarray(predictions, kind), np.asarray(labels, kind))

    @property
    def is_classes(self) -> bool:
        """Whether rows have one right answer."""
        return bool(np.issubdtype(self.labels.dtype, np.integer))

    def same_rows(self, other: ScoredRows) -> bool:
        """Whether both are answers to the same rows, as far as labels can tell."""
        return self.labels.dtype == other.labels.dtype and np.array_equal(self.labels, other.labels)

    def to_bytes(self) -> bytes:
        """Return a safetensors file: predictions, labels, and for classes whether each answer is correct."""
        from safetensors.numpy import save

        tensors = {"predictions": self.predictions, "labels": self.labels}
        if self.is_classes:
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
            rows = cls(tensors["predictions"], tensors["labels"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise IntegrityError(f"{FILE} must hold predictions and labels, but: {error}.") from error
        if rows.predictions.shape != rows.labels.shape:
            raise IntegrityError(f"{FILE} must have an answer a row, but got shapes {rows.predictions.shape}.")
        return rows
