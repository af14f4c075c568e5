"""What decides who is champion, and how it was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from loraxs_search.records._words import Direction
from loraxs_search.records._yardstick import Yardstick


@dataclass(frozen=True)
class PromotionRule:
    """When a candidate becomes champion.

    Args:
        metric: Test metric that decides; None means the task's own.
        direction: Which way it is better; None means as the metric table has it.
        min_gain: What a candidate must gain over the champion, in the metric's unit.
        confidence: How sure a gain or a loss on the same test rows must be to count as one; 0 asks for no test.
        tolerance: Among candidates within this of the best, and not surely worse, the smallest stored bytes win.
        guards: Metric to how much it may fall below the champion's, in its own unit.
        max_bytes: Larger adapters are not considered; None means no limit.
        max_latency: Nor are those with which a batch takes more than this many times the bare base's time; None means
            that it is not measured.
        candidates: How many of the best trials (by validation) are scored on the test split.
        seeds: How often each candidate is trained again from a fresh seed, to say how much of its score is luck.
    """

    metric: str | None = None
    direction: Direction | None = None
    min_gain: float = 0.0
    confidence: float = 0.95
    tolerance: float = 0.0
    guards: Mapping[str, float] = field(default_factory=dict)
    max_bytes: int | None = None
    max_latency: float | None = None
    candidates: int = 3
    seeds: int = 2


@dataclass(frozen=True)
class Refit:
    """A candidate's recipe trained again from another seed, and scored on the same rows.

    Args:
        failed: Why it has no scores; empty when it has.
    """

    seed: int
    validation_metrics: Mapping[str, float] = field(default_factory=dict)
    test_metrics: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True)
class Latency:
    """What a batch takes with an adapter, as it is loaded to be used, against the bare base in the same rounds.

    Args:
        ratio: Shortest time with the adapter over the shortest with the bare base; None when it could not be measured.
        rows, tokens: Of the batch.
        rounds: How often each of the two was timed.
        failed: Why there is no ratio; empty when there is one.
    """

    ratio: float | None = None
    rows: int = 0
    tokens: int = 0
    rounds: int = 0
    failed: str = ""


@dataclass(frozen=True)
class Candidate:
    """A finished trial scored on held-out rows.

    Args:
        base_model: The base's id, as named.
        refits: The same recipe from other seeds; what is promoted is the trial itself.
        latency: None where no rule has asked for it.
        study_id: The study's own, which no other has: on a shared registry names are used twice.
        yardsticks: What simple models reach on the same rows.
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
    latency: Latency | None = None
    study_id: str = ""
    yardsticks: tuple[Yardstick, ...] = ()


Action = Literal["promote", "rollback", "remove"]


@dataclass(frozen=True)
class Decision:
    """What was decided on a task's champion, with the numbers used; recorded for refusals too.

    Args:
        promoted: Whether `winner` became champion of the task, or of its base.
        winner: Trial id of the candidate chosen among its peers; None when none was eligible.
        champion: `study/trial_id` of the champion it was compared with.
        reasons: One sentence per consideration, in order.
        p_value: Chance of a gain this large if there were none; None when rows were not compared.
        latency: The winner's; None where it was not measured.
        aliases: What the winner is called now.
        version: Its version in the registry.
        at: When, ISO 8601.
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
    latency: float | None = None
    aliases: tuple[str, ...] = ()
    version: int | None = None
    at: str = ""
