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
        examples: The numbers of the first of these rows, each with that of a row in the other split, from 0.
        places: Where these are, for people; empty where that is not known.
        source: The name of the one file or data set that both splits are of; empty where they are not.
    """

    split: Split
    other: Split
    exact: int
    folded: int
    examples: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    places: str = field(default="", compare=False)
    source: str = field(default="", compare=False)


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of a split's rows, before any are left out to keep `max_length`; prompt and answer where one is learnt."""

    median: int
    longest: int


@dataclass(frozen=True)
class StandardError:
    """How much a metric varies from one draw of as many rows to the next.

    Args:
        error: The standard error of such a score, where half of the answers are right and half the constant one.
        reach: How far the constant answer's score is from that of answers that are all right.
    """

    error: float
    reach: float


@dataclass(frozen=True)
class AnswerFact:
    """A number that is said of the answers of each split, such as how many rows have a label."""

    name: str
    values: Mapping[Split, int | float]


@dataclass(frozen=True)
class ConstantAnswer:
    """The same answer to every row: the best one for the train rows, as people read it, and its scores by split."""

    answer: str
    scores: Mapping[Split, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class DataReport:
    """What was counted when a task's rows were read, and with which error scores on them come.

    Of validation, what is said of tokens, answers and scores is of the rows that reports score.

    Args:
        num_rows: Of each whole split.
        overlaps: Of each two splits, the one with the rows that scores are taken on first.
        repeated: Rows whose text is that of an earlier row of the same split.
        blank: Rows in which a text is empty.
        cut: Rows of each split that lost tokens to `max_length`; empty where the task's kind does not count them.
        warnings: What the task's kind says of the rows.
        cut_part: What such rows lose: their beginnings, or their ends.
        tokens: How long the rows of each split are.
        answers: What the task's kind says of them.
        constant: None where no metric of the task is taken of answers.
        standard_errors: Of each metric that is taken of answers, on validation and test rows.
    """

    num_rows: Mapping[Split, int] = field(default_factory=dict)
    overlaps: tuple[SplitOverlap, ...] = ()
    repeated: Mapping[Split, int] = field(default_factory=dict)
    blank: Mapping[Split, int] = field(default_factory=dict)
    cut: Mapping[Split, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    cut_part: str = "beginnings"
    tokens: Mapping[Split, TokenCounts] = field(default_factory=dict)
    answers: tuple[AnswerFact, ...] = ()
    constant: ConstantAnswer | None = None
    standard_errors: Mapping[Split, Mapping[str, StandardError]] = field(default_factory=dict)
