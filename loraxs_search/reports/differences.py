"""Whether a group is better than the first one, or by chance: paired rows where both were tested, else their seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraxs_search.records import Candidate, Task
from loraxs_search.registry.finalist import NOISE


@dataclass(frozen=True)
class Difference:
    """How much better a group is than the first one.

    Args:
        gain: In the task's metric, turned so that more is better.
        p_value: Chance of a difference this large, in either direction, if there were none; None where nothing tells.
        by: `rows`: both finalists answered the same test rows, which are compared one by one. `seeds`: the means over
            seeds on validation rows, by Welch's t-test.
        why: Why rows could not be compared; empty where they were.
    """

    gain: float
    p_value: float | None
    by: Literal["rows", "seeds"]
    why: str = ""


@dataclass(frozen=True)
class Evidence:
    """What of a group can be tested.

    Args:
        seed_scores: Of its best recipe.
        on_all_rows: Whether these are on all validation rows, or on those that reports score.
        tested: The finalist that is of this group; None without one.
        rows: The finalist's answers to the test rows.
    """

    task: Task
    seed_scores: Sequence[float] = ()
    on_all_rows: bool = True
    tested: Candidate | None = None
    rows: Path | None = None


def difference(first: Evidence, second: Evidence) -> Difference | None:
    """Return how `second` differs from `first`; None where neither rows nor seeds tell."""
    why = _why_not_paired(first, second)
    return _of_seeds(first, second, why) if why else _of_rows(first, second)


def _why_not_paired(first: Evidence, second: Evidence) -> str:
    for name, evidence in (("the first group", first), ("this group", second)):
        if evidence.tested is None or evidence.rows is None:
            return f"no paired rows: no finalist is of {name}"
    assert first.tested is not None
    assert second.tested is not None
    if first.tested.test_fingerprint != second.tested.test_fingerprint:
        return "no paired rows: the finalists answered other test rows"
    return ""


def _of_rows(first: Evidence, second: Evidence) -> Difference | None:
    from loraxs_search.registry import ScoredRows
    from loraxs_search.registry.significance import MIN_ROWS, p_value

    assert first.tested is not None
    assert second.tested is not None
    assert first.rows is not None
    assert second.rows is not None
    metric, sign = first.task.metric, _sign(first.task)
    one, other = (ScoredRows.from_bytes(path.read_bytes()) for path in (first.rows, second.rows))
    if len(one.labels) < MIN_ROWS:
        return _of_seeds(first, second, f"no paired rows: at least {MIN_ROWS} test rows tell, not {len(one.labels)}")
    sides = [p_value(metric, sign, *pair) for pair in ((one, other), (other, one))]
    smaller = min((p for p in sides if p is not None), default=None)
    gain = sign * (second.tested.test_metrics[metric] - first.tested.test_metrics[metric])
    return Difference(gain, None if smaller is None else min(1.0, 2 * smaller), "rows")


def _of_seeds(first: Evidence, second: Evidence, why: str) -> Difference | None:
    one, other = first.seed_scores, second.seed_scores
    if not one or not other or first.on_all_rows != second.on_all_rows:
        return None
    gain = _sign(first.task) * (statistics.fmean(other) - statistics.fmean(one))
    return Difference(gain, _welch(one, other), "seeds", why)


def _welch(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the two-sided p-value of two means; None with one seed, or where seeds do not differ at all."""
    from scipy.stats import ttest_ind_from_stats

    if min(len(one), len(other)) < 2 or max(max(one) - min(one), max(other) - min(other)) <= NOISE:
        return None
    sides = [(statistics.fmean(scores), statistics.stdev(scores), len(scores)) for scores in (other, one)]
    return float(ttest_ind_from_stats(*sides[0], *sides[1], equal_var=False).pvalue)


def _sign(task: Task) -> float:
    return 1.0 if task.direction == "maximize" else -1.0
