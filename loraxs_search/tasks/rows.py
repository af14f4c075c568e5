"""A task's rows as they were read and checked, before any tokenizer has seen them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.tasks._source_location import SourceLocation

# What people call a column with texts.
TEXT_NAMES = (
    *("text", "sentence", "review", "content", "body", "comment", "message", "document", "question", "prompt"),
    *("instruction", "input", "title", "description", "utterance", "query", "tweet", "abstract"),
)


@dataclass(frozen=True)
class Rows:
    """Rows of one split, or questions that are no part of the data.

    Texts say which row is which: rows of equal texts stay in one split, and are counted where splits share them.

    Args:
        texts: What an adapter is asked.
        pairs: A second text of each row; None where the task has none.
        labels: What an answer is held against, shape (N,): int64 ids, float32 numbers, or texts (dtype
            object: in one of fixed width, a single long text would take its length for every row).
        extras: What else the kind needs of its columns, by a name of its own: one value a row, each a text or a list
            of texts.
        place: Where the rows are from, for messages; None of rows that are in no source. No part of their content.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: npt.NDArray[Any]
    extras: Mapping[str, list[Any]] = field(default_factory=dict)
    place: SourceLocation | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: npt.NDArray[np.int64] | Sequence[int]) -> Rows:
        """Return the rows of `indices`, in that order."""
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        extras = {name: [column[i] for i in indices] for name, column in self.extras.items()}
        place = None if self.place is None else self.place.take(indices)
        return Rows([self.texts[i] for i in indices], pairs, self.labels[indices], extras, place)
