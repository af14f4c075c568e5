"""What a task's rows are like, beyond being readable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraxs_search.records._words import Split


@dataclass(frozen=True)
class SplitOverlap:
    """How many rows of one split have a text that is in another split too; of a pair, both texts.

    Args:
        split: Whose rows are counted.
        exact: Rows whose text is there letter for letter.
        folded: Rows whose text is there up to upper and lower case and white space; the exact ones are among them.
    """

    split: Split
    other: Split
    exact: int
    folded: int


@dataclass(frozen=True)
class DataReport:
    """What was counted when a task's rows were read; labels play no part in it.

    Args:
        num_rows: Of each whole split.
        overlaps: Of each two splits, the one with the rows that scores are taken on first.
        repeated: Rows whose text is that of an earlier row of the same split.
        blank: Rows in which a text is empty.
        cut: Rows of each split that lost tokens to `max_length`, of validation among those that are scored; empty where
            the task's kind does not count them.
        warnings: What the task's kind says of the rows.
    """

    num_rows: Mapping[Split, int] = field(default_factory=dict)
    overlaps: tuple[SplitOverlap, ...] = ()
    repeated: Mapping[Split, int] = field(default_factory=dict)
    blank: Mapping[Split, int] = field(default_factory=dict)
    cut: Mapping[Split, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
