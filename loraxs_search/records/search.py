"""What a search is asked, and what decides which of its adapters is the champion."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from loraxs_search.records.codec import (
    DERIVED,
    SECTION,
    Confidence,
    Count,
    Direction,
    Law,
    NotNegative,
    Precision,
    Scalar,
    SearchDevice,
    Text,
    distinct,
    sign_of,
)
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialReport

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
    """How much better than the champion the finalist must be on test rows. A smaller finalist may pass by `margin`
    instead; `margin: 0` forbids that.
    """
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
    on any slice of at least 30 test rows; see `task.slices`. `coverage` limits what the share of test rows that are
    answered may fall by at any operating point of the champion; see `task.operating_points`."""
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
class OperatingPoint:
    """An accuracy that an adapter promises where it is sure: see `operating_points`. Intervals are of 95 %.

    Args:
        point: The promised accuracy.
        threshold: The least probability of an answer that is given; None if validation rows show none.
        validation_rows: On which it was chosen, all of them.
        coverage: The share of the test rows that is answered.
        test_accuracy: The share of these answers that is right; None if there are none.
        rows_needed: Without a threshold, about how many validation rows would show one; None if none would.
    """

    point: float
    threshold: float | None
    validation_rows: int
    coverage: float | None = None
    coverage_interval: tuple[float, float] | None = None
    test_accuracy: float | None = None
    test_accuracy_interval: tuple[float, float] | None = None
    rows_needed: int | None = None

    def __str__(self) -> str:
        """Return in words what is answered, as in `sure at 0.9: ...`."""

        def share(value: float | None, interval: tuple[float, float] | None) -> str:
            low, high = interval or (0.0, 1.0)
            return f"{value or 0.0:.1%} ({low:.1%} to {high:.1%})"

        if self.threshold is None:
            enough = "none would" if self.rows_needed is None else f"about {self.rows_needed:,} would"
            law = f"{self.validation_rows:,} validation rows do not show that accuracy, {enough}"
            return f"at {self.point:g}: no row is answered, since {law}"
        kept = f", {share(self.test_accuracy, self.test_accuracy_interval)} of these rightly" * bool(self.coverage)
        answered = f"{share(self.coverage, self.coverage_interval)} of the test rows are answered{kept}"
        return f"at {self.point:g}: {answered}, from probability {self.threshold:.4g} on"


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
        operating_points: Only of the finalist.
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
    operating_points: tuple[OperatingPoint, ...] = ()

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


# Guards that are no metrics.
NEGATIVE_FLIPS, SLICE_LOSS, COVERAGE = "negative_flips", "slice_loss", "coverage"
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


@dataclass(frozen=True)
class Command:
    """One request to a search.

    Args:
        command_id: Chosen by the sender and never used twice: a search carries out each id once.
        verb: A name of `loraxs_search.steering`.
        trial_ids: The trials that it names, without doubles.
        arguments: Options of the verb by name.
        params: Values that `--set` gives, by the names of a trial's params.
        sent_by: Who sent it, as shown to users.
        issued_at: When, seconds since 1970.
    """

    command_id: str
    verb: str
    trial_ids: tuple[str, ...] = ()
    arguments: Mapping[str, Scalar] = field(default_factory=dict)
    params: Mapping[str, Scalar] = field(default_factory=dict)
    sent_by: str = ""
    issued_at: float = 0.0


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
# Each unit at most once, the largest first; what is looked for ahead keeps out blanks before it, and the empty text.
_DURATION = r"(?=\d)" + "".join(rf"(?:\s*(\d+(?:\.\d+)?)\s*{unit})?" for unit in _UNITS)


def seconds_of(text: str) -> float | None:
    """Return the seconds of `90s`, `10m`, `1.5d` or `1h30m`; None for any other text."""
    match = re.fullmatch(_DURATION, text)
    if match is None:
        return None
    return sum(float(number) * unit for number, unit in zip(match.groups("0"), _UNITS.values(), strict=True))


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    if (seconds := seconds_of(value)) is None:
        raise ValueError("must be seconds, or a number with a unit (90s, 10m, 1h30m, 1d)")
    return seconds


def _pack_size(value: object) -> object:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError("must be a whole number of at least 1, or auto")
    return value


_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_TIME = {"$comment": "duration", "anyOf": [_POSITIVE, {"type": "string", "pattern": f"^{_DURATION}$"}]}
_PACK_SIZE = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}


@dataclass(frozen=True)
class SearchPlan:
    """How to search: how many trials, how long each one trains, and which of them stop early."""

    __pydantic_config__ = SECTION

    metric: Text | None = None
    """Metric by which running trials are compared. The default is the task's own, or `loss` for `text-generation`.
    Candidates are always compared by the task's metric.
    """
    checkpoint: Literal["last", "best"] = "last"
    """Which step of a trial becomes its adapter: the `last` one, or the one with the `best` report."""
    trials: Count = 16
    """Number of trials to propose. `extend` raises it; trials from `add` come on top."""
    max_steps: Count = 160
    """Optimizer steps of the longest trial."""
    report_every: Count = 40
    """Steps between two reports. Each report scores the trial and may stop it."""
    concurrent: Count | None = None
    """Most trials that run at once. The default is as many as fit; an autoscaler starts nodes for those that wait."""
    scheduler: str = "asha"
    """Which trials stop early."""
    sampler: str = "tpe"
    """What proposes params."""
    time_budget: Annotated[float, Law(_seconds, _TIME, gt=0)] | None = None
    """What the whole search may take, such as `90s`, `1h30m` or `1d`; time before a `resume` counts. Trials stop at a
    report, or at their last one if the next is late, so early that refits, last scores and baselines fit by the speed
    measured so far; these get at most half. Refits that do not fit are left out, then candidates, and the search says
    so. Scores of the best trial and baselines are not left out, even if they take longer.
    """
    max_failures: Annotated[int, Law(ge=0)] = 3
    """How often a trial may lose its host or node between two reports, before it fails."""
    pack_size: Annotated[int | Literal["auto"], Law(_pack_size, _PACK_SIZE)] = "auto"
    """Trials that share a device. `auto` takes as many as fill it; 1 trains each trial unpacked."""
    precision: Precision = "auto"
    """Number format of the frozen base. `auto` is bfloat16 if the hardware has it."""
    device: SearchDevice = "auto"
    """What trains. `auto` takes GPUs if a node has any."""
    seed: Annotated[int, Law(ge=0, lt=2**32)] = 0
    """Random start of the sampler and of each trial. It repeats a whole search only with one trial at a time, since
    proposals depend on which trial reports first.
    """
    # A file has the keys that its scheduler and sampler declare beside those above.
    params: Mapping[str, Scalar] = field(default_factory=dict, metadata=DERIVED)

    def trial_seed(self, number: int) -> int:
        """Return the seed of the trial with this number: its start and the order of its rows."""
        return self.seed * 1_000_003 + number


@dataclass(frozen=True)
class CheckpointSelection:
    """Which step of a trial that has trained all its steps becomes its adapter.

    Args:
        metric: What reports are compared by; of equal ones the earlier is kept.
        checkpoint: `last` takes the last step, whatever its report.
    """

    metric: str
    direction: Direction
    checkpoint: Literal["last", "best"] = "last"

    @classmethod
    def of(cls, task: Task, plan: SearchPlan) -> CheckpointSelection:
        """Return the selection of a study."""
        return cls(task.search_metric, task.search_direction, plan.checkpoint)

    def select(self, reports: Sequence[TrialReport]) -> TrialReport:
        """Return the report of the step that is kept, of at least one."""
        if self.checkpoint == "last":
            return reports[-1]
        sign = sign_of(self.direction)
        return max(reports, key=lambda report: (sign * report.metrics[self.metric], -report.step))
