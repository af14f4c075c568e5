"""An adapter's answers to the test rows, the file in which they are kept beside it, and what they score.

A file may also say what each row has in the task's slice columns: promotion scores the rows of each value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import IntegrityError, counted
from loraxs_search.records import MIN_SLICE_ROWS, SLICE_LOSS, AnswerFlips, SliceScore
from loraxs_search.registry.finalist import NOISE
from loraxs_search.tasks.kinds import Metric

Values = npt.NDArray[Any]
FILE = "test_rows.safetensors"
MAX_ROWS_BYTES = 2**30  # a row is 17 bytes, and 20 for tokens: thirty million rows
SCORING = 1  # how texts become answers: where they end, which number they name; 0 in files that do not say
_SLICE = "slice."  # before a column's name
_LISTED = 5  # slices that a sentence names
_TYPES = {"losses": np.float32, "counts": np.int64, "correct": np.int64}  # columns that speak of tokens


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Answers to every test row, in test order.

    Args:
        predictions: Of the adapter itself, shape (N,): label ids, numbers or texts.
        labels: What they should be, shape (N,).
        losses: The sum of each row's loss, (N,), float32; None if metrics need none, as the next two.
        counts: What these are sums of, (N,), int64.
        correct: How many of these were predicted, (N,), int64.
        scoring: By which `SCORING` texts were read; 0 where answers are no texts.
        slices: By slice column, the value of each row, (N,), texts; empty where the task has none.
    """

    predictions: Values
    labels: Values
    losses: npt.NDArray[np.float32] | None = None
    counts: npt.NDArray[np.int64] | None = None
    correct: npt.NDArray[np.int64] | None = None
    scoring: int = 0
    slices: Mapping[str, Values] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        predictions: Sequence[float | str],
        labels: Sequence[float | str],
        losses: Sequence[float] | None = None,
        counts: Sequence[int] | None = None,
        correct: Sequence[int] | None = None,
        slices: Mapping[str, Sequence[str]] | None = None,
    ) -> ScoredRows:
        """Make rows of plain values; whole numbers are label ids."""
        some = [*predictions[:1], *labels[:1]]
        kind: npt.DTypeLike = np.float64 if any(isinstance(value, float) for value in some) else np.int64
        if any(isinstance(value, str) for value in some):
            kind = object  # a text as long as it is, not as the longest one
        tokens = {"losses": losses, "counts": counts, "correct": correct}
        arrays = {name: None if column is None else np.asarray(column, _TYPES[name]) for name, column in tokens.items()}
        groups = {name: np.asarray(values, object) for name, values in (slices or {}).items()}
        return cls(np.asarray(predictions, kind), np.asarray(labels, kind), **arrays, scoring=SCORING, slices=groups)

    def take(self, chosen: npt.NDArray[np.bool_]) -> ScoredRows:
        """Return these rows, without their slices; `chosen` is (N,)."""
        columns: dict[str, Any] = {name: None if (own := self.column(name)) is None else own[chosen] for name in _TYPES}
        return replace(self, predictions=self.predictions[chosen], labels=self.labels[chosen], **columns, slices={})

    def column(self, name: str) -> Values | None:
        """Return what a metric is taken of, by its `Metric.column`; None if these rows lack it."""
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

    def flips_from(self, champion: ScoredRows) -> AnswerFlips | None:
        """Return what these answers change of a champion's; None of numbers, of other rows, or of rows without any."""
        if self.labels.dtype.kind not in "iO" or not self.same_rows(champion):
            return None
        was, is_right = (rows.predictions == rows.labels for rows in (champion, self))
        if not (was.any() or is_right.any()):  # a metric of tokens alone asks for no answers
            return None
        return AnswerFlips(int((was & ~is_right).sum()), int((is_right & ~was).sum()), len(was))

    def to_bytes(self) -> bytes:
        """Return a safetensors file: predictions, labels, and for ids and texts whether each answer is correct.

        Texts are stored as bytes of a JSON list. Sums over tokens and slices stand beside them where there are any.
        """
        from safetensors.numpy import save

        tensors = {"predictions": _stored(self.predictions), "labels": _stored(self.labels)}
        if self.labels.dtype.kind in "iO":
            tensors["correct"] = (self.predictions == self.labels).astype(np.uint8)
        tensors |= {f"token_{name}": values for name in _TYPES if (values := self.column(name)) is not None}
        if self.labels.dtype.kind == "O":
            tensors["scoring"] = np.array([self.scoring])
        tensors |= {f"{_SLICE}{name}": _stored(values) for name, values in self.slices.items()}
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
            tokens: dict[str, Any] = {name: tensors.get(f"token_{name}") for name in _TYPES}
            scoring = int(tensors["scoring"][0]) if "scoring" in tensors else 0
            slices = {name.removeprefix(_SLICE): _values(it) for name, it in tensors.items() if name.startswith(_SLICE)}
            said = _values(tensors["predictions"]), _values(tensors["labels"])
            rows = cls(*said, **tokens, scoring=scoring, slices=slices)
        except (SafetensorError, KeyError, IndexError, ValueError, TypeError) as error:
            raise IntegrityError(f"{FILE} must hold predictions and labels, but: {error}.") from error
        columns = (rows.column(name) for name in ("predictions", "labels", *_TYPES))
        shapes = {values.shape for values in (*columns, *slices.values()) if values is not None}
        if len(shapes) > 1:
            raise IntegrityError(f"{FILE} must have an answer a row, but got shapes {sorted(shapes)}.")
        return rows


def _stored(values: Values) -> Values:
    if values.dtype.kind != "O":
        return values
    return np.frombuffer(json.dumps(values.tolist()).encode(), np.uint8)


def _values(stored: Values) -> Values:
    return np.array(json.loads(stored.tobytes()), object) if stored.dtype == np.uint8 else stored


def score_of(metric: Metric, rows: ScoredRows) -> float | None:
    """Return a metric of rows; None if they lack what it is taken of."""
    values = rows.column(metric.column)
    against = rows.labels if metric.column == "predictions" else rows.counts
    return None if values is None or against is None or not len(values) else metric.score(values, against)


def describe_flips(flips: AnswerFlips) -> str:
    """Say how many answers a finalist changes."""
    lost, won = flips.negative, flips.positive
    return (
        f"of {flips.num_rows:,} test rows, {lost:,} ({flips.negative_share:.1%}) that the champion answers right become"
        f" wrong, and {won:,} that it answers wrong become right"
    )


# ---- slices ----------------------------------------------------------------------------------------------------------
def slice_scores(
    metric: Metric, sign: float, rows: ScoredRows, champion: ScoredRows | None = None
) -> tuple[SliceScore, ...]:
    """Return a metric of the rows of each slice, by column and value.

    Args:
        sign: 1 when more is better, -1 when less is.
        champion: Another adapter's answers, which need not say their slices; answers to other rows count for nothing.
    """
    found, champion = list[SliceScore](), champion if champion is not None and rows.same_rows(champion) else None
    for column, values in rows.slices.items():
        for value in sorted(set(values.tolist())):
            chosen = values == value
            own, other = (_finite_score(metric, it, chosen) for it in (rows, champion))
            loss = None if own is None or other is None else sign * (other - own)
            found.append(SliceScore(column, value, int(chosen.sum()), own, other, loss))
    return tuple(found)


def _finite_score(metric: Metric, rows: ScoredRows | None, chosen: npt.NDArray[np.bool_]) -> float | None:
    with np.errstate(invalid="ignore", divide="ignore"):  # a mean over tokens, of rows without one
        score = None if rows is None else score_of(metric, rows.take(chosen))
    return score if score is not None and math.isfinite(score) else None


def losing_slice(slices: Sequence[SliceScore], allowed: float) -> str:
    """Say which slice of enough rows loses more than it may, or why that is not known; empty where none does."""
    large = [each for each in slices if each.num_rows >= MIN_SLICE_ROWS]
    seen = {each.column for each in large}
    if unseen := [f" of `{each.column}`" for each in slices if each.column not in seen] or [""] * (not slices):
        return (
            f"guard: {SLICE_LOSS} needs a slice{unseen[0]} with {MIN_SLICE_ROWS} test rows or more, but there is none"
        )
    worst = max(large, key=lambda each: math.inf if each.loss is None else each.loss)
    if worst.loss is None:
        return f"guard: {SLICE_LOSS} needs the scores of both on {worst.name}, but they cannot be compared"
    if worst.loss <= allowed + NOISE:
        return ""
    scores = f"{worst.champion_score:.4f} to {worst.score:.4f} on {counted(worst.num_rows, 'row')}"
    return f"guard: {SLICE_LOSS} of {worst.name} is {worst.loss:.4f} ({scores}), and may be at most {allowed:g}"


def describe_slices(slices: Sequence[SliceScore]) -> str:
    """Say which slices lose against the champion; empty where none was compared."""
    compared = [(each.loss, each) for each in slices if each.loss is not None]
    losing = sorted([it for it in compared if it[0] > NOISE], key=lambda it: -it[0])
    named = [f"{each.name} by {loss:.4f} ({counted(each.num_rows, 'row')})" for loss, each in losing[:_LISTED]]
    more = [f"{len(losing) - _LISTED} more"] if len(losing) > _LISTED else []
    count = f"slices that lose: {len(losing) or 'none'} of {len(compared)}"
    return ", ".join([count, *named, *more]) if compared else ""
