"""The promotion rule, pure: which candidate is the best of its peers, and whether it replaces the champion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraxs_search.records import Candidate, Decision, Direction, PromotionRule, Task

if TYPE_CHECKING:
    from loraxs_search.registry.rows import ScoredRows

_NOISE = 1e-9  # 0.805 - 0.800 > 0.005 in floating point: a bound is met when missed by no more than this
_NO_ROWS: Mapping[str, ScoredRows] = {}


@dataclass(frozen=True)
class _Law:
    """The rule with the task's metric and direction filled in, and the rows that candidates were scored on."""

    rule: PromotionRule
    task: str
    metric: str
    sign: float
    rows: Mapping[str, ScoredRows]

    def value(self, candidate: Candidate) -> float:
        """Return the deciding metric, turned so that more is better."""
        return self.sign * candidate.test_metrics[self.metric]

    def shows(self, candidate: Candidate) -> str:
        metric, ratio = f"{self.metric} {candidate.test_metrics[self.metric]:.4f}", _latency(candidate)
        slower = "" if self.rule.max_latency is None or ratio is None else f", {ratio:.3f} times the bare base's time"
        return f"{candidate.trial_id} ({metric}, {_bytes(candidate)}{slower})"

    def p_value(self, better: Candidate, worse: Candidate) -> float | None:
        """Return the chance that `better` is ahead by luck; None when the rule asks for no test or rows lack."""
        rows = [self.rows.get(key(candidate)) for candidate in (better, worse)]
        if not self.rule.confidence or rows[0] is None or rows[1] is None:
            return None
        from loraxs_search.registry.paired import p_value  # numpy, where rows are there to compare

        return p_value(self.metric, self.sign, rows[0], rows[1])

    def is_sure(self, p: float | None) -> bool:
        """Whether a difference counts; one that could not be tested counts as it stands."""
        return p is None or p <= 1 - self.rule.confidence + _NOISE

    def surely_worse(self, candidate: Candidate, other: Candidate) -> bool:
        p = self.p_value(other, candidate)
        return p is not None and self.is_sure(p)


def decide(
    rule: PromotionRule,
    task: Task,
    candidates: Sequence[Candidate],
    champion: Candidate | None,
    forced: bool = False,
    rows: Mapping[str, ScoredRows] = _NO_ROWS,
) -> Decision:
    """Choose among `candidates`, and say whether the choice becomes champion.

    A candidate takes part when it is of this task, has a finite test metric, at most `max_bytes`, and a latency of at
    most `max_latency`, which must have been measured where the rule has one. The best metric sets the mark; of those
    within `tolerance` of it, and not surely worse on the same rows, the one with the fewest stored bytes is chosen
    (then the better metric, then the lower trial id), whatever the order they come in. It is promoted when there is no
    champion; when it gains at least `min_gain` over the champion, more than nothing, and surely so; or when it is
    within `tolerance` of the champion, not surely worse, and stores strictly fewer bytes.
    Not when a guarded metric falls by more than it may. "Surely" is a paired test at `confidence` over the test rows,
    where both were answered row by row; else numbers are taken as they stand. A champion measured on other data is
    not comparable.

    Args:
        rule: `metric` defaults to the task's.
        champion: The current champion as it was scored; None when there is none.
        forced: Promote the choice whatever the champion; never one that may not take part.
        rows: A candidate's `key` to its answers to the test rows, the champion's too.
    """
    metric = rule.metric or task.metric
    law = _Law(rule, task.name, metric, _sign(rule, task, metric), rows)
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
    """Return the name of a candidate across studies, for people: `study/trial_id`."""
    return f"{candidate.study}/{candidate.trial_id}"


def key(candidate: Candidate) -> str:
    """Return what no other candidate has: its name, and its study's id, since two people may name studies alike."""
    return identity(candidate) + (f" {candidate.study_id}" if candidate.study_id else "")


def _sign(rule: PromotionRule, task: Task, metric: str) -> float:
    known = _better_when(metric, task.direction) if rule.metric else task.direction
    return 1.0 if (rule.direction or known) == "maximize" else -1.0


def _better_when(metric: str, otherwise: Direction) -> Direction:
    from loraxs_search.tasks.metrics import METRICS  # numpy, which reading a champion does without

    return METRICS[metric].direction if metric in METRICS else otherwise


def _fault(law: _Law, candidate: Candidate) -> str | None:
    if candidate.task != law.task:
        return f"it is of task {candidate.task}"
    value = candidate.test_metrics.get(law.metric)
    if value is None:
        return f"it has no test {law.metric}"
    if not math.isfinite(value):
        return f"its test {law.metric} is {value}"
    limit = law.rule.max_bytes
    if limit is not None and candidate.stored_bytes > limit:
        return f"it stores {_bytes(candidate)}, more than max_bytes={limit:,}"
    return _too_slow(law.rule, candidate)


def _too_slow(rule: PromotionRule, candidate: Candidate) -> str | None:
    if rule.max_latency is None:
        return None
    law, ratio = f"max_latency={rule.max_latency:g}", _latency(candidate)
    if ratio is None:
        failed = candidate.latency.failed if candidate.latency else ""
        return f"its latency must be known to be within {law}, but {failed or 'it was not measured'}"
    if not ratio <= rule.max_latency + _NOISE:  # NaN is too slow
        return f"with it a batch takes {ratio:.3f} times the bare base's time, more than {law}"
    return None


def _latency(candidate: Candidate) -> float | None:
    return candidate.latency.ratio if candidate.latency else None


def _choose(law: _Law, eligible: Sequence[Candidate], reasons: list[str]) -> Candidate:
    best = max(eligible, key=law.value)  # the first of equals, in trial order
    near = [c for c in eligible if law.value(best) - law.value(c) <= law.rule.tolerance + _NOISE]
    peers = [c for c in near if c is best or not law.surely_worse(c, best)]
    winner = min(peers, key=lambda c: (c.stored_bytes, -law.value(c), identity(c)))
    reasons.append(f"best of {len(eligible)}: {law.shows(best)}")
    if winner is not best:
        reasons.append(f"smallest within tolerance={law.rule.tolerance:g} of it: {law.shows(winner)}")
    return winner


def _replaces(law: _Law, winner: Candidate, champion: Candidate | None, forced: bool, reasons: list[str]) -> bool:
    if champion is None:
        reasons.append("there was no champion")
        return True
    if key(winner) == key(champion):
        reasons.append(f"{identity(winner)} already is the champion")
        return False
    promoted, reason = _compare(law, winner, champion)
    reasons.append(reason)
    if forced and not promoted:
        reasons.append("promoted by force")
    return promoted or forced


def _compare(law: _Law, winner: Candidate, champion: Candidate) -> tuple[bool, str]:
    rule = law.rule
    ours, theirs = winner.data_fingerprint, champion.data_fingerprint
    if ours != theirs:
        return False, f"not comparable: the champion was scored with other data ({theirs[:12]}, not {ours[:12]})"
    score = champion.test_metrics.get(law.metric)
    if score is None or not math.isfinite(score):
        return False, f"not comparable: the champion has no finite test {law.metric}"
    if fallen := _fallen(rule, winner, champion):
        return False, fallen
    gain = law.value(winner) - law.value(champion)
    against = f"gain {gain:+.4f} over the champion {law.shows(champion)}"
    if gain > _NOISE and gain >= rule.min_gain - _NOISE:
        p = law.p_value(winner, champion)
        if law.is_sure(p):
            return True, f"{against}, at least min_gain={rule.min_gain:g}{_sureness(rule, p)}"
        lacking = f"not sure enough (p={p:.3g}, confidence={rule.confidence:g})"
    else:
        lacking = f"less than wanted ({f'min_gain={rule.min_gain:g}' if rule.min_gain > 0 else 'more than nothing'})"
    if gain >= -rule.tolerance - _NOISE and winner.stored_bytes < champion.stored_bytes:
        if not law.surely_worse(winner, champion):
            return True, f"{against}, within tolerance={rule.tolerance:g}, and smaller"
        lacking += ", smaller but surely worse"
    return False, f"{against}, {lacking}"


def _sureness(rule: PromotionRule, p: float | None) -> str:
    if p is not None:
        return f" (p={p:.3g}, confidence={rule.confidence:g})"
    return ", not tested: rows were not compared" if rule.confidence else ""


def _fallen(rule: PromotionRule, winner: Candidate, champion: Candidate) -> str | None:
    """Say which guarded metric falls too far."""
    for name, allowed in sorted(rule.guards.items()):
        ours, theirs = winner.test_metrics.get(name), champion.test_metrics.get(name)
        if ours is None or theirs is None:
            return f"guard: {name} must be known of both, but one has none"
        sign = 1.0 if _better_when(name, "maximize") == "maximize" else -1.0
        if not sign * (theirs - ours) <= allowed + _NOISE:  # NaN is a fall
            return f"guard: {name} would go from {theirs:.4f} to {ours:.4f}, and may fall by {allowed:g}"
    return None


def _decision(
    law: _Law,
    candidates: Sequence[Candidate],
    winner: Candidate | None,
    champion: Candidate | None,
    promoted: bool,
    reasons: Sequence[str],
    forced: bool,
) -> Decision:
    studies = sorted({c.study for c in candidates})
    compared = winner is not None and champion is not None and winner.data_fingerprint == champion.data_fingerprint
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
        p_value=law.p_value(winner, champion) if compared and winner and champion else None,
        latency=_latency(winner) if winner else None,
    )


def _bytes(candidate: Candidate) -> str:
    return f"{candidate.stored_bytes:,} bytes"
