"""A task in one line: its champion as the registry's list shows it, kept as a tag so that a list needs no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraxs_search.records import Candidate, Decision
from loraxs_search.registry.seed_statistics import SeedStatistics, seed_statistics

SHOWN = "loraxs.champion"  # a tag that says the same to people


@dataclass(frozen=True)
class TaskSummary:
    """A task and its champion; without a champion all but the task is empty.

    Args:
        score: The champion's test value of `metric`, as it was promoted.
        mean: Mean validation value of `metric` over the champion and the same recipe from other seeds.
        spread: Their sample standard deviation; None when there are no refits.
        promoted_at: ISO 8601.
        aliases: Alias to version, other champions included.
    """

    task: str
    version: int | None = None
    metric: str = ""
    score: float | None = None
    mean: float | None = None
    spread: float | None = None
    stored_bytes: int | None = None
    base_model: str = ""
    promoted_at: str = ""
    aliases: Mapping[str, int] = field(default_factory=dict)


def summarise(task: str, version: int, candidate: Candidate, decision: Decision) -> TaskSummary:
    """Return the line of a task whose champion is `version`."""
    over_seeds = seed_statistics(candidate).get(decision.metric)
    return TaskSummary(
        task=task,
        version=version,
        metric=decision.metric,
        score=candidate.test_metrics.get(decision.metric),
        mean=over_seeds.mean if over_seeds else None,
        spread=over_seeds.deviation if over_seeds else None,
        stored_bytes=candidate.stored_bytes,
        base_model=candidate.base_model,
        promoted_at=decision.at,
    )


def shown(summary: TaskSummary) -> str:
    """Return the line as people read it among a registered model's tags."""
    if summary.version is None:
        return "none"
    over_seeds = f" ({SeedStatistics(summary.mean, summary.spread, 0)} over seeds)" if summary.mean is not None else ""
    score = "-" if summary.score is None else f"{summary.score:.4f}"
    size = "" if summary.stored_bytes is None else f", {summary.stored_bytes:,} bytes"
    return f"version {summary.version}, {summary.metric} {score}{over_seeds}{size}"
