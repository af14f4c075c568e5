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
MAX_BYTES = 2**30  # a row is 17 bytes, and 20 for tokens: thirty million rows
SCORING = 1  # how texts become answers: where they end, which number they name; 0 in files that do not say
_TYPES = {"losses": np.float32, "counts": np.int64, "correct": np.int64}  # columns that speak of tokens


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Answers to every test row, in test order.

    Args:
        predictions: Of the adapter itself, shape (N,): label ids, numbers or texts.
        labels: What they should be, shape (N,).
        losses: The sum of each row's loss, (N,), float32; None where metrics need none, as the next two.
        counts: What these are sums of, (N,), int64.
        correct: How many of these were predicted, (N,), int64.
        scoring: By which `SCORING` texts were read; 0 is that of earlier versions.
    """

    predictions: Values
    labels: Values
    losses: npt.NDArray[np.float32] | None = None
    counts: npt.NDArray[np.int64] | None = None
    correct: npt.NDArray[np.int64] | None = None
    scoring: int = 0

    @classmethod
    def of(
        cls,
        predictions: Sequence[float | str],
        labels: Sequence[float | str],
        losses: Sequence[float] | None = None,
        counts: Sequence[int] | None = None,
        correct: Sequence[int] | None = None,
    ) -> ScoredRows:
        """Make rows of plain values; whole numbers are label ids."""
        some = [*predictions[:1], *labels[:1]]
        kind: npt.DTypeLike = np.float32 if any(isinstance(value, float) for value in some) else np.int64
        if any(isinstance(value, str) for value in some):
            kind = object  # a text as long as it is, not as the longest one
        tokens = {"losses": losses, "counts": counts, "correct": correct}
        arrays = {name: None if column is None else np.asarray(column, _TYPES[name]) for name, column in tokens.items()}
        return cls(np.asarray(predictions, kind), np.asarray(labels, kind), **arrays, scoring=SCORING)

    def column(self, name: str) -> Values | None:
        """Return what a metric is taken of, by its `Metric.column`; None where these rows lack it."""
        values: Values | None = getattr(self, name)
        return values

    def same_tokens(self, other: ScoredRows) -> bool:
        """Whether as many tokens were learnt of each row: sums over them can be compared then."""
        return self.counts is not None and other.counts is not None and np.array_equal(self.counts, other.counts)

    def read_alike(self, other: ScoredRows) -> bool:
        """Whether the same rules made answers of what was written; ids and numbers are not written."""
        return self.labels.dtype.kind != "O" or self.scoring == other.scoring

    def same_rows(self, other: ScoredRows) -> bool:
        """Whether both are answers to the same rows, as far as labels can tell."""
        return self.labels.dtype.kind == other.labels.dtype.kind and np.array_equal(self.labels, other.labels)

    def to_bytes(self) -> bytes:
        """Return a safetensors file: predictions, labels, and for ids and texts whether each answer is correct.

        Texts are stored as bytes of a JSON list. Sums over tokens stand beside them where there are any.
        """
        from safetensors.numpy import save

        tensors = {"predictions": _stored(self.predictions), "labels": _stored(self.labels)}
        if self.labels.dtype.kind in "iO":
            tensors["correct"] = (self.predictions == self.labels).astype(np.uint8)
        tensors |= {f"token_{name}": values for name in _TYPES if (values := self.column(name)) is not None}
        if self.labels.dtype.kind == "O":
            tensors["scoring"] = np.array([self.scoring])
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
            tokens = {name: tensors.get(f"token_{name}") for name in _TYPES}
            scoring = int(tensors["scoring"][0]) if "scoring" in tensors else 0
            rows = cls(_values(tensors["predictions"]), _values(tensors["labels"]), **tokens, scoring=scoring)
        except (SafetensorError, KeyError, IndexError, ValueError, TypeError) as error:
            raise IntegrityError(f"{FILE} must hold predictions and labels, but: {error}.") from error
        columns = (rows.column(name) for name in ("predictions", "labels", *_TYPES))
        shapes = {values.shape for values in columns if values is not None}
        if len(shapes) > 1:
            raise IntegrityError(f"{FILE} must have an answer a row, but got shapes {sorted(shapes)}.")
        return rows


def _stored(values: Values) -> Values:
    if values.dtype.kind != "O":
        return values
    return np.frombuffer(json.dumps(values.tolist()).encode(), np.uint8)


def _values(stored: Values) -> Values:
    return np.array(json.loads(stored.tobytes()), object) if stored.dtype == np.uint8 else stored
