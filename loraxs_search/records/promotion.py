"""Baselines of a task, and what decides which adapter is its champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from loraxs_search.records.literals import SECTION, Confidence, Count, Direction, Law, NotNegative, Text, distinct

SHOTS = "-shot"  # the end of such a name; the number of worked examples, or `zero`, stands before it


@dataclass(frozen=True)
class Baseline:
    """A simple model of the same train rows, scored on the same validation and test rows as adapters are.

    Args:
        name: That of an entry of `tasks.baselines`, such as `tfidf`.
            `zero-shot` is the base without an adapter, asked as adapters are, and `4-shot` the same with four worked
            examples in each prompt. Only the better of these on the validation rows answers the test rows.
        answer: What `constant` says: a label id, a number or a text; None for the others.
        test_answers: Its answer to each test row: label ids, numbers or texts. A study keeps them apart.
        test_rows: Fingerprint of the test rows that these answer.
        seconds: What it took of one processor core.
        failed: Why it lacks metrics, the test rows' or all; empty when it has both.
        applies: Whether measuring one that failed again can help: worked examples may not fit into the base's context,
            and rows may be too many for a model.
    """

    name: str
    validation_metrics: Mapping[str, float] = field(default_factory=dict)
    test_metrics: Mapping[str, float] = field(default_factory=dict)
    answer: int | float | str | None = None
    test_answers: tuple[float | str, ...] = ()
    test_rows: str = ""
    seconds: float = 0.0
    failed: str = ""
    applies: bool = True

    @property
    def is_untouched(self) -> bool:
        """Whether it is the base without an adapter, asked as adapters are."""
        return self.name.endswith(SHOTS)

    @property
    def is_unmeasured(self) -> bool:
        """Whether this study could have it and has not; a constant answer can always be had."""
        return self.name != "constant" and bool(self.failed) and (self.applies or not self.is_untouched)


BASE_MODEL_ROWS = 200  # validation rows, at most, that choose how the untouched base is asked


def _names(value: object) -> object:
    return tuple(distinct(value)) if isinstance(value, list) else value


@dataclass(frozen=True)
class PromotionRule:
    """When an adapter becomes the champion of its task."""

    __pydantic_config__ = SECTION

    metric: Text | None = None
    """Metric that decides. The default is the task's."""
    direction: Direction | None = None
    """May be left out: it is always the metric's own."""
    min_gain: NotNegative = 0.0
    """How much better than the champion the finalist must be on test rows."""
    # Of n comparisons on the same rows, the n-th has the share 1 / (n (n + 1)) of 1 - confidence.
    confidence: Confidence = 0.95
    """Confidence of the paired test that the finalist is better, over all comparisons on the same test rows together. 0
    compares the numbers as they are.
    """
    tolerance: NotNegative = 0.0
    """What a smaller adapter may cost on validation rows: the smallest candidate within it of the best one becomes the
    finalist. 0.005 is half a point of accuracy.
    """
    margin: NotNegative | None = None
    """A finalist that is smaller than the champion replaces it if a paired test on the test rows shows that it is less
    than this worse than the best champion so far. The default is 0.01 for accuracy and other shares of rows. Other
    metrics have none: size does not count. 0 means the same.
    """
    require: Literal["constant", "all"] = "all"
    """Baselines that a champion must beat: `all` of its study, or the `constant` answer alone."""
    guards: Mapping[str, NotNegative] = field(default_factory=dict)
    """Other metrics, and how far each may fall below the champion's: `{f1: 0.01}`. `negative_flips` limits the share of
    test rows that the champion answers right and the finalist wrong, `slice_loss` what the metric that decides may lose
    on any slice of at least 30 test rows; see `task.slices`."""
    max_bytes: Count | None = None
    """Larger adapters are not candidates."""
    choose: Literal["best", "smallest"] = "best"
    """Which trials are candidates: the `best`, or the best one and the `smallest` within `tolerance` of it."""
    candidates: Count = 3
    """How many of the best trials can become the finalist."""
    seeds: Annotated[int, Law(ge=0)] = 2
    """How often each candidate is trained again from a new seed. The refits are candidates too; 0 saves their time."""
    methods: Annotated[tuple[Text, ...], Law(_names)] = ()
    """Methods whose trials may be candidates. The default is all but `head-only` and `full`."""

    def num_refits(self, num_trials: int) -> int:
        """Return how many refits a search of so many trials makes, at most."""
        return self.seeds * min(self.candidates, num_trials)


@dataclass(frozen=True)
class Refit:
    """A candidate's recipe trained again from another seed, and scored on the same validation rows.

    Args:
        failed: Why it has no scores; empty when it has.
    """

    seed: int
    validation_metrics: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True)
class Candidate:
    """A trained adapter that a search may end with: one of its best trials, or a refit of one.

    Args:
        trial_id: The trial's; a refit's has the refit's number behind it, as in `00012.1`.
        test_metrics: Only of the finalist.
        validation_metrics: On all validation rows.
        base_model: The base's id, as named.
        refits: The same recipe from other seeds, the trial itself too where this is a refit.
        study_id: The study's own, which no other has: on a shared registry names are used twice.
        baselines: What simple models reach on the same rows; only of the finalist.
        test_fingerprint: Of the test rows.
        kept_step: The step that the adapter is of, where a study keeps the best one; None if it is the last.
        earlier_finalists: Adapters of the study that had answered the same test rows when its search went on; the
            finalist's alone.
    """

    study: str
    trial_id: str
    task: str
    test_metrics: Mapping[str, float]
    validation_metrics: Mapping[str, float]
    stored_bytes: int
    data_fingerprint: str
    base_digest: str
    base_model: str = ""
    refits: tuple[Refit, ...] = ()
    study_id: str = ""
    baselines: tuple[Baseline, ...] = ()
    test_fingerprint: str = ""
    kept_step: int | None = None
    earlier_finalists: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name across studies, shown to users: `study/trial_id`."""
        return f"{self.study}/{self.trial_id}"

    @property
    def key(self) -> str:
        """What no other candidate has: its name, and its study's id, since two people may name studies alike."""
        return self.name + (f" {self.study_id}" if self.study_id else "")


@dataclass(frozen=True)
class ComparisonRecord:
    """A finalist was compared with what it must beat, on test rows.

    Args:
        finalist: The finalist's key.
        opponent: The champion's key, or `constant` where there was none: the required baselines.
        number: Of this comparison among all on these rows; the same two compared again are one comparison.
        confidence: What it was held to.
        p_value: Chance of a gain this large if there were none; None when no test was asked for.
        reference_version: Version that a smaller finalist may be a margin worse than; None if there is none.
        reference_metric: That version's score on these rows.
    """

    finalist: str
    opponent: str
    number: int
    confidence: float
    p_value: float | None = None
    reference_version: int | None = None
    reference_metric: float | None = None


NEGATIVE_FLIPS, SLICE_LOSS = "negative_flips", "slice_loss"  # guards that are no metrics
MIN_SLICE_ROWS = 30  # on fewer, one answer is more than three points of accuracy


@dataclass(frozen=True)
class AnswerFlips:
    """Test rows that one of two adapters answers right and the other wrong.

    Args:
        negative: Right under the champion, wrong under the finalist.
        positive: Wrong under the champion, right under the finalist.
        num_rows: All test rows.
    """

    negative: int
    positive: int
    num_rows: int

    @property
    def negative_share(self) -> float:
        """The share of all test rows that become wrong."""
        return self.negative / self.num_rows


@dataclass(frozen=True)
class SliceScore:
    """A score on the test rows that have one value in a slice column.

    Args:
        value: The empty text stands for rows without one.
        score: The finalist's; None if the metric is not defined on these rows.
        champion_score: The champion's; None also where there is none, or its answers cannot be compared.
        loss: How much worse the finalist is, in the metric's unit, negative where it is better; None without both.
    """

    column: str
    value: str
    num_rows: int
    score: float | None
    champion_score: float | None = None
    loss: float | None = None

    @property
    def name(self) -> str:
        """Column and value as people read them."""
        return f"{self.column}={' '.join(self.value.split()) or '(none)'}"


Action = Literal["promote", "rollback", "remove"]


@dataclass(frozen=True)
class Decision:
    """What was decided on a task's champion, with the numbers used; recorded for refusals too.

    Args:
        promoted: Whether `winner` became champion of the task.
        winner: Trial id of the finalist; None when no candidate was eligible.
        champion: `study/trial_id` of the champion it was compared with.
        reasons: One sentence per consideration, in order.
        forced: Whether it overrules the rule.
        p_value: Chance of a gain this large if there were none; None when rows were not compared.
        version: Its version in the registry.
        at: When, ISO 8601, by the clock of its promoter.
        number: Of this decision among those on the task.
        test_fingerprint: Of the test rows that it was made on.
        comparisons: Those on these rows that it is made of.
        seen: Digests of finalists that were scored on these rows and compared with nobody, which it was the first to
            count.
        flips: What the winner changes of the champion's answers; None if no answers were compared, or if they are
            numbers.
        slices: Scores on each slice of the test rows. Records of many keep those that lose most.
    """

    task: str
    study: str
    promoted: bool
    winner: str | None
    winner_metric: float | None
    champion_metric: float | None
    metric: str
    reasons: tuple[str, ...]
    forced: bool = False
    champion: str | None = None
    action: Action = "promote"
    p_value: float | None = None
    version: int | None = None
    at: str = ""
    number: int = 0
    test_fingerprint: str = ""
    comparisons: tuple[ComparisonRecord, ...] = ()
    seen: tuple[str, ...] = ()
    flips: AnswerFlips | None = None
    slices: tuple[SliceScore, ...] = ()
