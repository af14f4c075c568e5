"""Which adapter of a search is its finalist. Pure: validation rows choose, test rows play no part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraxs_search.records import Candidate, PromotionRule, Task
from loraxs_search.registry.criterion import NOISE, Criterion


@dataclass(frozen=True)
class Choice:
    """The finalist, None when no candidate may be one, and one sentence for each consideration."""

    finalist: Candidate | None
    reasons: tuple[str, ...]


def choose(rule: PromotionRule, task: Task, candidates: Sequence[Candidate]) -> Choice:
    """Choose among the adapters of a search, on all validation rows.

    A candidate takes part when it is of this task, has a finite validation metric, and at most `max_bytes`. The best
    metric sets the mark; of those within `tolerance` of it, the one with the fewest stored bytes is chosen (then the
    better metric, then the lower trial id), whatever the order they come in.
    """
    criterion = Criterion.of(rule, task)
    checked = [(c, _fault(rule, task, criterion, c)) for c in sorted(candidates, key=identity)]
    eligible = [candidate for candidate, fault in checked if fault is None]
    reasons = [f"{candidate.trial_id} is out: {fault}" for candidate, fault in checked if fault is not None]
    if not eligible:
        none = "no trial of a method that may be promoted has trained all its steps"
        return Choice(None, (*reasons, "no candidate may be promoted" if candidates else none))

    def value(candidate: Candidate) -> float:
        return criterion.value(candidate.validation_metrics)

    best = max(eligible, key=value)  # the first of equals, in trial order
    peers = [c for c in eligible if value(best) - value(c) <= rule.tolerance + NOISE]
    finalist = min(peers, key=lambda c: (c.stored_bytes, -value(c), identity(c)))
    reasons.append(f"best of {len(eligible)} on validation rows: {_show(criterion, best)}")
    if finalist is not best:
        reasons.append(f"smallest within tolerance={rule.tolerance:g} of it: {_show(criterion, finalist)}")
    return Choice(finalist, tuple(reasons))


def identity(candidate: Candidate) -> str:
    """Return the name of a candidate across studies, for people: `study/trial_id`."""
    return f"{candidate.study}/{candidate.trial_id}"


def key(candidate: Candidate) -> str:
    """Return what no other candidate has: its name, and its study's id, since two people may name studies alike."""
    return identity(candidate) + (f" {candidate.study_id}" if candidate.study_id else "")


def trial_of(trial_id: str) -> str:
    """Return the trial whose recipe an adapter was trained by: of a refit, the trial that it repeats."""
    return trial_id.partition(".")[0]


def show_bytes(candidate: Candidate) -> str:
    """Return what a candidate stores, for people."""
    return f"{candidate.stored_bytes:,} bytes"


def _show(criterion: Criterion, candidate: Candidate) -> str:
    return f"{candidate.trial_id} ({criterion.show(candidate.validation_metrics)}, {show_bytes(candidate)})"


def _fault(rule: PromotionRule, task: Task, criterion: Criterion, candidate: Candidate) -> str | None:
    if candidate.task != task.name:
        return f"it is of task {candidate.task}"
    if fault := criterion.fault(candidate.validation_metrics, "validation"):
        return fault
    if rule.max_bytes is not None and candidate.stored_bytes > rule.max_bytes:
        return f"it stores {show_bytes(candidate)}, more than max_bytes={rule.max_bytes:,}"
    return None
