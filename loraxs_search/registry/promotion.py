"""The promotion rule, pure: which candidate is the best of its peers, and whether it replaces the champion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loraxs_search.records import Candidate, Decision, PromotionRule, Task

_NOISE = 1e-9  # 0.805 - 0.800 > 0.005 in floating point: a bound is met when missed by no more than this


@dataclass(frozen=True)
class _Rule:
    """The rule with the task's metric and direction filled in."""

    task: str
    metric: str
    sign: float
    min_gain: float
    tolerance: float
    max_bytes: int | None

    def value(self, candidate: Candidate) -> float:
        """Return the deciding metric, turned so that more is better."""
        return self.sign * candidate.test_metrics[self.metric]

    def shows(self, candidate: Candidate) -> str:
        return f"{candidate.trial_id} ({self.metric} {candidate.test_metrics[self.metric]:.4f}, {_bytes(candidate)})"


def decide(
    rule: PromotionRule, task: Task, candidates: Sequence[Candidate], champion: Candidate | None, forced: bool = False
) -> Decision:
    """Choose among `candidates`, and say whether the choice becomes champion.

    A candidate takes part when it is of this task, has a finite test metric and at most `max_bytes`. The best metric
    sets the mark; of those within `tolerance` of it the one with the fewest stored bytes is chosen (then the better
    metric, then the lower trial id), whatever the order they come in. It is promoted when there is no champion, when
    it gains more than nothing and at least `min_gain` over the champion, or when it is within `tolerance` of the
    champion and stores strictly fewer bytes. A champion measured on other data or another base is not comparable.

    Args:
        rule: `metric` defaults to the task's; another metric is read in the task's direction.
        champion: The current champion as it was scored; None when there is none.
        forced: Promote the choice whatever the champion; never one that may not take part.
    """
    law = _Rule(
        task=task.name,
        metric=rule.metric or task.metric,
        sign=1.0 if task.direction == "maximize" else -1.0,
        min_gain=rule.min_gain,
        tolerance=rule.tolerance,
        max_bytes=rule.max_bytes,
    )
    checked = [(candidate, _fault(law, candidate)) for candidate in sorted(candidates, key=identity)]
    eligible = [candidate for candidate, fault in checked if fault is None]
    reasons = [f"{candidate.trial_id} is out: {fault}" for candidate, fault in checked if fault is not None]
    if not eligible:
        reasons.append("no candidate may be promoted")
        return _decision(law, candidates, None, champion, False, reasons, forced)
    winner = _choose(law, eligible, reasons)
    promoted = _replaces(law, winner, champion, forced, reasons)
    return _decision(law, candidates, winner, champion, promoted, reasons, forced)


def identity(candidate: Candidate) -> str:
    """Return the name of a candidate across studies: `study/trial_id`."""
    return f"{candidate.study}/{candidate.trial_id}"


def _fault(law: _Rule, candidate: Candidate) -> str | None:
    if candidate.task != law.task:
        return f"it is of task {candidate.task}"
    value = candidate.test_metrics.get(law.metric)
    if value is None:
        return f"it has no test {law.metric}"
    if not math.isfinite(value):
        return f"its test {law.metric} is {value}"
    if law.max_bytes is not None and candidate.stored_bytes > law.max_bytes:
        return f"it stores {_bytes(candidate)}, more than max_bytes={law.max_bytes:,}"
    return None


def _choose(law: _Rule, eligible: Sequence[Candidate], reasons: list[str]) -> Candidate:
    best = max(eligible, key=law.value)  # the first of equals, in trial order
    peers = [c for c in eligible if law.value(best) - law.value(c) <= law.tolerance + _NOISE]
    winner = min(peers, key=lambda c: (c.stored_bytes, -law.value(c), identity(c)))
    reasons.append(f"best of {len(eligible)}: {law.shows(best)}")
    if winner is not best:
        reasons.append(f"smallest within tolerance={law.tolerance:g} of it: {law.shows(winner)}")
    return winner


def _replaces(law: _Rule, winner: Candidate, champion: Candidate | None, forced: bool, reasons: list[str]) -> bool:
    if champion is None:
        reasons.append("there was no champion")
        return True
    if identity(winner) == identity(champion):
        reasons.append(f"{identity(winner)} already is the champion")
        return False
    promoted, reason = _compare(law, winner, champion)
    reasons.append(reason)
    if forced and not promoted:
        reasons.append("promoted by force")
    return promoted or forced


def _compare(law: _Rule, winner: Candidate, champion: Candidate) -> tuple[bool, str]:
    for what, ours, theirs in (
        ("data", winner.data_fingerprint, champion.data_fingerprint),
        ("base model", winner.base_digest, champion.base_digest),
    ):
        if ours != theirs:
            return False, f"not comparable: the champion was scored with other {what} ({theirs[:12]}, not {ours[:12]})"
    score = champion.test_metrics.get(law.metric)
    if score is None or not math.isfinite(score):
        return False, f"not comparable: the champion has no finite test {law.metric}"
    gain = law.value(winner) - law.value(champion)
    against = f"gain {gain:+.4f} over the champion {law.shows(champion)}"
    if gain > _NOISE and gain >= law.min_gain - _NOISE:
        return True, f"{against}, at least min_gain={law.min_gain:g}"
    if gain >= -law.tolerance - _NOISE and winner.stored_bytes < champion.stored_bytes:
        return True, f"{against}, within tolerance={law.tolerance:g}, and smaller"
    wanted = f"min_gain={law.min_gain:g}" if law.min_gain > 0 else "more than nothing"
    return False, f"{against}, less than wanted ({wanted})"


def _decision(
    law: _Rule,
    candidates: Sequence[Candidate],
    winner: Candidate | None,
    champion: Candidate | None,
    promoted: bool,
    reasons: Sequence[str],
    forced: bool,
) -> Decision:
    studies = sorted({c.study for c in candidates})
    return Decision(
        task=law.task,
        study=winner.study if winner else ", ".join(studies),
        promoted=promoted,
        winner=winner.trial_id if winner else None,
        winner_metric=winner.test_metrics[law.metric] if winner else None,
        champion_metric=champion.test_metrics.get(law.metric) if champion else None,
        metric=law.metric,
        reasons=tuple(reasons),
        forced=forced,
        champion=identity(champion) if champion else None,
    )


def _bytes(candidate: Candidate) -> str:
    return f"{candidate.stored_bytes:,} bytes"
