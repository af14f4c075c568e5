"""Trials of several studies in groups of equal budgets: how good and small each is, and which is better by chance.

Two groups that were both tested are compared by paired rows, others by their seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from loraxs_search.errors import StudyError, UsageError, shortened, unknown_name
from loraxs_search.pareto import pareto_front
from loraxs_search.records.literals import Scalar
from loraxs_search.records.promotion import Candidate
from loraxs_search.records.task import Task
from loraxs_search.registry.finalist import NOISE, SeedStatistics, trial_of
from loraxs_search.reports.compared_studies import METHOD, STUDY, ComparedStudy, ComparedTrial


@dataclass(frozen=True)
class Difference:
    """How much better a group is than the first one.

    Args:
        gain: In the task's metric, turned so that more is better.
        p_value: Chance of a difference this large, in either direction, if there were none; None if nothing tells.
        by: `rows`: both finalists answered the same test rows, which are compared one by one. `seeds`: the means over
            seeds on validation rows, by Welch's t-test.
        why: Why rows could not be compared; empty where they were.
    """

    gain: float
    p_value: float | None
    by: Literal["rows", "seeds"]
    why: str = ""


def difference(first: Group, second: Group) -> Difference | None:
    """Return how `second` differs from `first`, by paired rows or else by seeds; None if neither tells."""
    from loraxs_search.registry.evidence import MIN_ROWS, ScoredRows, p_value
    from loraxs_search.tasks.kinds import kind_of

    if first.tested is None or first.test_rows is None:
        return _of_seeds(first, second, "no paired rows: no finalist is of the first group")
    if second.tested is None or second.test_rows is None:
        return _of_seeds(first, second, "no paired rows: no finalist is of this group")
    if first.tested.test_fingerprint != second.tested.test_fingerprint:
        return _of_seeds(first, second, "no paired rows: the finalists answered other test rows")
    metric, sign = first.task.metric, _sign(first.task)
    one, other = (ScoredRows.from_bytes(path.read_bytes()) for path in (first.test_rows, second.test_rows))
    if len(one.labels) < MIN_ROWS:
        return _of_seeds(first, second, f"no paired rows: at least {MIN_ROWS} test rows tell, not {len(one.labels)}")
    known = kind_of(first.task).metrics[metric]
    sides = [p_value(known, sign, *pair) for pair in ((one, other), (other, one))]
    smaller = min((p for p in sides if p is not None), default=None)
    gain = sign * (second.tested.test_metrics[metric] - first.tested.test_metrics[metric])
    return Difference(gain, None if smaller is None else min(1.0, 2 * smaller), "rows")


def _of_seeds(first: Group, second: Group, why: str) -> Difference | None:
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


@dataclass(frozen=True)
class Point:
    """A complete trial.

    Args:
        trial: `study/trial_id`.
        score: Of the step that is kept.
        r_parameters: Of the adapter without its head.
        stored_bytes: Of its file, head and names included.
        without_projection: The same without what a seed gives back; None if there is nothing of the kind.
    """

    trial: str
    method: str
    score: float
    r_parameters: int
    head_parameters: int
    stored_bytes: int
    without_projection: int | None = None


@dataclass(frozen=True)
class SizeRatio:
    """What a group takes beside the reference to reach the best score that both reach.

    Args:
        score: That score.
        trial, reference: The smallest adapter of either that reaches it.
        r_parameters: The group's over the reference's; None if the reference trains no adapter.
        stored_bytes: The same of what is stored, heads included.
    """

    score: float
    trial: str
    reference: str
    r_parameters: float | None
    stored_bytes: float


def front_of(points: Iterable[Point], sign: float) -> tuple[Point, ...]:
    """Return the points that no other beats in score and stored bytes together, fewest bytes first.

    Args:
        sign: 1 when more is better, -1 when less is.
    """
    return tuple(pareto_front(points, lambda point: (sign * point.score, point.stored_bytes)))


def ratio_to(reference: Sequence[Point], front: Sequence[Point], sign: float, tolerance: float) -> SizeRatio | None:
    """Compare the smallest adapters of two fronts that reach the best score that both reach, less a tolerance."""
    if not reference or not front:
        return None
    mark = min(sign * reference[-1].score, sign * front[-1].score)
    least = mark - tolerance - NOISE
    own, other = (next(it for it in points if sign * it.score >= least) for points in (front, reference))
    parameters = own.r_parameters / other.r_parameters if other.r_parameters else None
    return SizeRatio(sign * mark, own.trial, other.trial, parameters, own.stored_bytes / other.stored_bytes)


MAX_GROUPS = 12
_HINT = "`loraxs-search status STUDY` shows what trials tried"


@dataclass(frozen=True)
class Group:
    """The trials that have one value.

    Args:
        trials: All that have ended, study by study in the order they were started.
        budget: How many of these are compared.
    """

    value: Scalar | None
    trials: Sequence[ComparedTrial]
    studies: Sequence[ComparedStudy]
    budget: int
    max_bytes: int | None

    @property
    def label(self) -> str:
        """The value, as shown to users."""
        return "-" if self.value is None else str(self.value)

    @property
    def task(self) -> Task:
        """The task, which all studies have in common."""
        return self.studies[0].info.task

    @property
    def used(self) -> Sequence[ComparedTrial]:
        """The trials that are compared."""
        return self.trials[: self.budget]

    @property
    def sign(self) -> float:
        """1 when a higher score is better, -1 when a lower one is."""
        return 1.0 if self.task.search_direction == "maximize" else -1.0

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Those that have a score and are small enough."""
        most = math.inf if self.max_bytes is None else self.max_bytes
        return tuple(
            Point(trial.name, trial.method, trial.score, **vars(trial.size))
            for trial in self.used
            if trial.score is not None and trial.size and trial.size.stored_bytes <= most
        )

    @property
    def best(self) -> Point | None:
        """The best score; of equal ones the first."""
        return max(self.points, key=lambda point: self.sign * point.score, default=None)

    @cached_property
    def seed_scores(self) -> tuple[float, ...]:
        """The task's metric of the best one's recipe from several seeds, its own first.

        Those of the candidate and its refits; where it is none, those of trials with the same params and steps.
        """
        task, candidate = self.task, self._best_candidate
        if candidate is not None:
            metrics = [candidate.validation_metrics, *(refit.validation_metrics for refit in candidate.refits)]
            scores = [values.get(task.metric, math.nan) for values in metrics]
            return tuple(score for score in scores if math.isfinite(score))
        best = next((trial for trial in self.used if self.best and trial.name == self.best.trial), None)
        if best is None or task.metric != task.search_metric:
            return ()
        of_seeds = {best.seed: best.score}
        for trial in self.trials:  # the same space launched twice has the same trials again, which are no other seeds
            if (trial.method, trial.params, trial.steps) == (best.method, best.params, best.steps):
                of_seeds.setdefault(trial.seed, trial.score)
        known = tuple(score for score in of_seeds.values() if score is not None)
        return known if len(known) > 1 else ()

    @property
    def over_seeds(self) -> SeedStatistics | None:
        """Mean and deviation of these."""
        return SeedStatistics.of(self.seed_scores) if self.seed_scores else None

    @property
    def on_all_rows(self) -> bool:
        """Whether `seed_scores` are on all validation rows, or on those that reports score."""
        return self._best_candidate is not None or self.task.validation_rows is None

    @cached_property
    def tested(self) -> Candidate | None:
        """The finalist of this group; of several the best one on validation rows, by which they were chosen."""
        names, task, sign = {point.trial for point in self.points}, self.task, _sign(self.task)
        tested = [
            candidate
            for candidate in self._candidates
            if candidate.test_metrics and f"{candidate.study}/{trial_of(candidate.trial_id)}" in names
        ]
        return max(tested, key=lambda c: sign * c.validation_metrics.get(task.metric, -sign * math.inf), default=None)

    @cached_property
    def test_rows(self) -> Path | None:
        """The finalist's answers to the test rows."""
        if self.tested is None:
            return None
        study = next(study for study in self.studies if study.name == self.tested.study)
        rows = study.folder.confirmations().rows_path(self.tested.trial_id)
        return rows if rows.is_file() else None

    # ---- inside ------------------------------------------------------------------------------------------------------
    @property
    def _best_candidate(self) -> Candidate | None:
        best = self.best
        return next((c for c in self._candidates if best and f"{c.study}/{c.trial_id}" == best.trial), None)

    @property
    def _candidates(self) -> list[Candidate]:
        return [candidate for study in self.studies for candidate in study.candidates]


def group_trials(
    studies: Sequence[ComparedStudy], by: str, max_bytes: int | None = None, against: str | None = None
) -> list[Group]:
    """Return the groups: numbers in order, others in the order in which their first trials come.

    Args:
        against: The value whose group comes first.
    Raises:
        StudyError: no trial has ended.
        UsageError: no trial has the parameter or the value, or there are too many values.
    """
    trials = [trial for study in studies for trial in study.trials]
    if not trials:
        raise StudyError(
            f"A study must have trials that have ended to be compared, but there are none of {_names(studies)}.",
            hint=f"watch it with `loraxs-search status {studies[0].name}`",
        )
    grouped: dict[Scalar | None, list[ComparedTrial]] = {}
    for trial in trials:
        grouped.setdefault(trial.value(by), []).append(trial)
    _check(by, grouped, trials)
    budget = min(map(len, grouped.values()))
    groups = [Group(value, grouped[value], studies, budget, max_bytes) for value in _ordered(grouped)]
    if against is None:
        return groups
    first = next((group for group in groups if group.label == against), None)
    if first is None:
        raise UsageError(unknown_name("--against", against, [group.label for group in groups]), hint=_HINT)
    return [first, *(group for group in groups if group is not first)]


def _ordered(values: Iterable[Scalar | None]) -> list[Scalar | None]:
    listed = list(values)
    numbers = [value for value in listed if isinstance(value, int | float)]
    return [*sorted(numbers), *(value for value in listed if not isinstance(value, int | float))]


def _names(studies: Sequence[ComparedStudy]) -> str:
    return ", ".join(study.name for study in studies)


def _check(by: str, values: dict[Scalar | None, list[ComparedTrial]], trials: Sequence[ComparedTrial]) -> None:
    if set(values) == {None}:
        known = {METHOD, STUDY, *(name for trial in trials for name in trial.params)}
        raise UsageError(unknown_name("--by", by, known), hint=_HINT)
    if len(values) > MAX_GROUPS:
        raise UsageError(
            f"`--by` must be a parameter with at most {MAX_GROUPS} values, but {by} has {len(values)} here, such as "
            f"{shortened(trials[0].value(by))}.",
            hint="compare by a parameter that is chosen from a list",
        )
