"""Trials of several studies, grouped, with as many of each group as the smallest has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from loraxs_search.errors import StudyError, UsageError, shortened, unknown_name
from loraxs_search.records import AdapterSize, Candidate, Scalar
from loraxs_search.registry import trial_of
from loraxs_search.registry.finalist import SeedStatistics
from loraxs_search.reports.compared_studies import METHOD, STUDY, ComparedStudy, ComparedTrial
from loraxs_search.reports.differences import Evidence
from loraxs_search.reports.size_ratio import Point

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
        """The value, for people."""
        return "-" if self.value is None else str(self.value)

    @property
    def used(self) -> Sequence[ComparedTrial]:
        """The trials that are compared."""
        return self.trials[: self.budget]

    @property
    def sign(self) -> float:
        """1 when a higher score is better, -1 when a lower one is."""
        return 1.0 if self.studies[0].info.task.search_direction == "maximize" else -1.0

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Those that have a score and are small enough."""
        return tuple(
            _point(trial, trial.score, trial.size)
            for trial in self.used
            if trial.score is not None and trial.size and self._is_small_enough(trial.size)
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
        task, candidate = self.studies[0].info.task, self._best_candidate
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

    @cached_property
    def evidence(self) -> Evidence:
        """What of the group can be tested."""
        task, tested = self.studies[0].info.task, self._tested
        on_all_rows = self._best_candidate is not None or task.validation_rows is None
        if tested is None:
            return Evidence(task, self.seed_scores, on_all_rows)
        study = next(study for study in self.studies if study.name == tested.study)
        rows = study.folder.confirmations().rows_path(tested.trial_id)
        return Evidence(task, self.seed_scores, on_all_rows, tested, rows if rows.is_file() else None)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _is_small_enough(self, size: AdapterSize) -> bool:
        return self.max_bytes is None or size.stored_bytes <= self.max_bytes

    @property
    def _best_candidate(self) -> Candidate | None:
        best = self.best
        return next((c for c in self._candidates if best and f"{c.study}/{c.trial_id}" == best.trial), None)

    @property
    def _tested(self) -> Candidate | None:
        """The finalist of this group; of several the best one on validation rows, by which they were chosen."""
        names, task = {point.trial for point in self.points}, self.studies[0].info.task
        sign = 1.0 if task.direction == "maximize" else -1.0
        tested = [
            candidate
            for candidate in self._candidates
            if candidate.test_metrics and f"{candidate.study}/{trial_of(candidate.trial_id)}" in names
        ]
        return max(tested, key=lambda c: sign * c.validation_metrics.get(task.metric, -sign * math.inf), default=None)

    @property
    def _candidates(self) -> list[Candidate]:
        return [candidate for study in self.studies for candidate in study.candidates]


def _point(trial: ComparedTrial, score: float, size: AdapterSize) -> Point:
    return Point(
        trial.name,
        trial.method,
        score,
        size.r_parameters,
        size.head_parameters,
        size.stored_bytes,
        size.without_projection,
    )


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
