"""The front of a study: the trials that are worth their bytes."""

from __future__ import annotations

from collections.abc import Iterable

from loraxs_search.pareto import Fronts, Point
from loraxs_search.records import FrontTrial, KeepRule, TrialRecord, TrialState


def front(records: Iterable[TrialRecord], keep: KeepRule) -> list[FrontTrial]:
    """Return the complete trials that no other one beats in score and stored bytes together, fewest bytes first.

    Of trials that were stopped nothing is kept that could be used, and their scores are of fewer steps.
    """
    kept = {r.trial_id: keep.kept(r.reports) for r in records if r.state is TrialState.COMPLETE}
    fronts, sign = Fronts[str](), 1.0 if keep.direction == "maximize" else -1.0
    for trial_id in sorted(kept):
        fronts.add(trial_id, (sign * kept[trial_id].metrics[keep.metric], kept[trial_id].size.stored_bytes))
    return [FrontTrial(name, kept[name].metrics[keep.metric], kept[name].size.stored_bytes) for name in fronts.first()]


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """Return the area that points cover up to a reference: what is worse than one of them, and better than that.

    Args:
        points: (score, bytes), more of the first and less of the second is better; those beyond the reference count
            nothing. To count shares of bytes instead of bytes, give logarithms.
    """
    fronts = Fronts[int]()
    for number, point in enumerate(dict.fromkeys(points)):
        if point[0] > reference[0] and point[1] < reference[1]:
            fronts.add(number, point)
    covered, below = 0.0, reference[0]
    for score, stored in (fronts.get(number) or reference for number in fronts.first()):
        covered += (score - below) * (reference[1] - stored)
        below = score
    return covered
