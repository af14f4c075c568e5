"""Which trials of a study are candidates: trained again from new seeds, and scored on all validation rows."""

from __future__ import annotations

from collections.abc import Sequence

from loraxs_search.pareto import spread_order
from loraxs_search.records import FrontTrial, KeepRule, PromotionRule, SearchPlan, Task, TrialRecord
from loraxs_search.registry.finalist import NOISE, Criterion
from loraxs_search.reports.leaderboard import front


def candidate_trials(
    trials: Sequence[TrialRecord], rule: PromotionRule, task: Task, plan: SearchPlan
) -> Sequence[TrialRecord]:
    """Return the trials that are candidates: by default the best ones that are within `max_bytes`.

    Where score and stored bytes are searched for together, or the rule chooses the smallest, trials of the front come
    first, one of each size, so that it is not the large end alone that is trained again. `best` takes the best scores
    of the front. `smallest` takes the best, which tolerance counts from, and then the smallest within tolerance of it;
    where reports were scored by another metric than the rule's, trials that are spread over the front. Where all trials
    are above `max_bytes`, they are candidates, and the rule says why none is promoted.

    Args:
        trials: Complete ones, best first.
    """
    keep, limit = KeepRule.of(task, plan), rule.max_bytes
    small = [r for r in trials if limit is None or keep.kept(r.reports).size.stored_bytes <= limit] or list(trials)
    if rule.choose == "best" and not plan.objectives:
        return small[: rule.candidates]
    of_each_size = {it.stored_bytes: it for it in reversed(front(small, keep))}  # more bytes, and a better score, first
    chosen = list(of_each_size.values())
    if rule.choose == "smallest":
        chosen = _smallest_first(chosen, rule, task, keep)
    by_name = {record.trial_id: record for record in small}
    first = [by_name.pop(it.trial_id) for it in chosen]
    return [*first, *by_name.values()][: rule.candidates]


def _smallest_first(
    best_first: Sequence[FrontTrial], rule: PromotionRule, task: Task, keep: KeepRule
) -> list[FrontTrial]:
    """Order a front by what the rule would choose."""
    sign = 1.0 if keep.direction == "maximize" else -1.0
    if not best_first or Criterion.of(rule, task).metric != keep.metric:
        by_point = {(sign * it.score, float(it.stored_bytes)): it for it in reversed(best_first)}
        return [by_point[point] for point in spread_order(list(by_point))]
    best, *others = best_first
    within = [it for it in reversed(others) if sign * (best.score - it.score) <= rule.tolerance + NOISE]
    return [best, *within, *(it for it in others if it not in within)]
