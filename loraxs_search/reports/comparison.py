"""What studies say of each method, or of each value of a parameter: the best that equal budgets found.

Beside it, which parameters decide whether a trial is among a study's best: PED-ANOVA, by Optuna.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loraxs_search.errors import LoraxsError, counted
from loraxs_search.records.literals import Direction, Scalar
from loraxs_search.registry.finalist import NOISE, SeedStatistics
from loraxs_search.reports.compared_groups import (
    Difference,
    Group,
    Point,
    SizeRatio,
    difference,
    front_of,
    group_trials,
    ratio_to,
)
from loraxs_search.reports.compared_studies import METHOD, STUDY, ComparedStudy, read_studies
from loraxs_search.reports.optuna_study import study_trials
from loraxs_search.studies.folder import StudyFolder

if TYPE_CHECKING:
    import optuna


MIN_TRIALS = 10  # complete ones; with fewer, the best of them are too few to have a distribution
_BEST = 5  # Optuna advises at least so many trials above the quantile


@dataclass(frozen=True)
class Importances:
    """How far the best trials of a study lie apart from all, parameter by parameter.

    Args:
        values: Shares that sum to 1, largest first. A parameter with other ranges under other conditions, or without
            one, is weighed by each of these.
        num_trials: Complete trials that they are of.
        quantile: The share of trials that counts as the best.
        why: Why there are none; empty if there are some.
    """

    study: str
    values: Mapping[str, float] = field(default_factory=dict)
    num_trials: int = 0
    quantile: float | None = None
    why: str = ""


def importances(folder: StudyFolder) -> Importances:
    """Return a study's importances, from its log; nothing is written."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # of groups of trials that are small: `num_trials` says so
        try:
            study = _complete_trials(folder)
        except (LoraxsError, ValueError) as error:  # the log is damaged
            reason = str(error).partition("\n")[0].rstrip(":")  # of all faults of a space, how many there are
            return Importances(folder.name, why=f"what its params were drawn from is not known: {reason}")
        count = len(study.trials)
        if count < MIN_TRIALS:
            return Importances(folder.name, num_trials=count, why=f"they need {MIN_TRIALS} complete trials")
        quantile = max(0.1, _BEST / count)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
        values = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return Importances(folder.name, values, count, quantile)


def _complete_trials(folder: StudyFolder) -> optuna.Study:
    """Return the complete trials in memory, each parameter under its own name."""
    import optuna
    from optuna.trial import TrialState

    from loraxs_search.search_space.distributions import plain_name

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stored = study_trials(folder)
    study = optuna.create_study(direction=stored.direction)
    for trial in stored.trials:
        if trial.state is TrialState.COMPLETE:
            params = {plain_name(name): value for name, value in trial.params.items()}
            distributions = {plain_name(name): value for name, value in trial.distributions.items()}
            study.add_trial(optuna.trial.create_trial(values=trial.values, params=params, distributions=distributions))
    return study


REFERENCE = "lora"  # the method whose sizes others are divided by
_FEW = 4  # trials of a group; with fewer, its best is mostly luck


@dataclass(frozen=True)
class ComparedGroup:
    """The trials of one method, or of one value of a parameter.

    Args:
        value: What they have in common; None if the method does not take the parameter. `label` is shown to users.
        num_trials: How many have ended; the first `Comparison.budget` of them are compared.
        steps, device_s: What those took in all.
        points: Those that trained all their steps and store at most `max_bytes`, in the order they were started.
        front: The best ones for their size, smallest first.
        best: The best score among `points`; None if there is none.
        seed_scores: The task's metric of the best one and of its refits on all validation rows, its own first; where it
            is no candidate, that of trials with the same params, at their reports.
        over_seeds: Mean and deviation of these.
        tested: The finalist that is of this group, which answered the test rows; empty without one.
        test_score: The task's metric of it.
        difference: From the first group; None for that one itself, and where nothing tells.
        to_lora: What it takes beside LoRA to be as good; None if no LoRA was tried.
        reached_after: Trials until one was as good as the first group's best; None if none was.
    """

    value: Scalar | None
    label: str
    studies: tuple[str, ...]
    num_trials: int
    steps: int
    device_s: float
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    best: Point | None
    seed_scores: tuple[float, ...]
    over_seeds: SeedStatistics | None
    tested: str
    test_score: float | None
    difference: Difference | None = None
    to_lora: SizeRatio | None = None
    reached_after: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Studies of one task, compared.

    Args:
        by: `method`, `study`, or a parameter.
        metric: What trials are compared by at their reports; `direction` says which way is better.
        task_metric: What candidates and test rows are scored by.
        studies: Name to state: `finished`, `running` or `interrupted`.
        budget: The first so many trials of each group are compared: as many as the smallest has.
        tolerance: How much worse still counts as equal, where sizes at equal quality are compared.
        importances: Of each study's parameters.
        notes: What a reader must know, one sentence each.
    """

    by: str
    task: str
    base_model: str
    metric: str
    direction: Direction
    task_metric: str
    studies: Mapping[str, str]
    budget: int
    max_bytes: int | None
    tolerance: float
    groups: tuple[ComparedGroup, ...]
    importances: tuple[Importances, ...] = ()
    notes: tuple[str, ...] = ()


def compare(
    studies: Sequence[str],
    *,
    by: str = METHOD,
    against: str | None = None,
    max_bytes: int | None = None,
    tolerance: float = 0.0,
) -> Comparison:
    """Compare methods, or values of a parameter, by the best adapter that each found within the same number of trials.

    Args:
        studies: Names; their tasks, rows and bases must be the same.
        by: `method`, `study`, or a parameter, its default included where a space leaves it out.
        against: The value that the others are compared with; the first one by default.
        max_bytes: Larger adapters are left out.
        tolerance: How much worse still counts as equal, where sizes are compared with LoRA's.
    Raises:
        StudyError: a study is missing, no trial has ended, or studies are not of one task, the same rows and one base.
        UsageError: no trial has the parameter, or too many values of it.
    """
    opened = read_studies(studies)
    groups = group_trials(opened, by, max_bytes, against)
    task = opened[0].info.task
    return Comparison(
        by=by,
        task=task.registered_name,
        base_model=opened[0].info.base_model.id,
        metric=task.search_metric,
        direction=task.search_direction,
        task_metric=task.metric,
        studies={study.name: study.state for study in opened},
        budget=groups[0].budget,
        max_bytes=max_bytes,
        tolerance=tolerance,
        groups=tuple(_compared(groups, tolerance)),
        importances=tuple(importances(study.folder) for study in opened),
        notes=tuple(_notes(opened, groups, by)),
    )


def _compared(groups: Sequence[Group], tolerance: float) -> list[ComparedGroup]:
    """Return each group beside the first one, and beside LoRA."""
    first, sign = groups[0], groups[0].sign
    lora = front_of((point for group in groups for point in group.points if point.method == REFERENCE), sign)
    return [_beside(group, first, lora, tolerance) for group in groups]


def _beside(group: Group, first: Group, lora: Sequence[Point], tolerance: float) -> ComparedGroup:
    front, tested = front_of(group.points, group.sign), group.tested
    return ComparedGroup(
        value=group.value,
        label=group.label,
        studies=tuple(dict.fromkeys(trial.study for trial in group.used)),
        num_trials=len(group.trials),
        steps=sum(trial.steps for trial in group.used),
        device_s=sum(trial.device_s for trial in group.used),
        points=tuple(group.points),
        front=front,
        best=group.best,
        seed_scores=group.seed_scores,
        over_seeds=group.over_seeds,
        tested=f"{tested.study}/{tested.trial_id}" if tested else "",
        test_score=tested.test_metrics.get(group.task.metric) if tested else None,
        difference=None if group is first else difference(first, group),
        to_lora=ratio_to(lora, front, group.sign, tolerance),
        reached_after=_reached_after(first.best, group),
    )


def _reached_after(mark: Point | None, group: Group) -> int | None:
    """Return the number of the group's first trial that is as good as `mark`."""
    if mark is None:
        return None
    reached = {p.trial for p in group.points if group.sign * p.score >= group.sign * mark.score - NOISE}
    return next((number for number, trial in enumerate(group.used, 1) if trial.name in reached), None)


def _notes(studies: Sequence[ComparedStudy], groups: Sequence[Group], by: str) -> list[str]:
    """Return what limits the comparison."""
    notes = [f"{study.name} is {study.state}: its trials so far" for study in studies if study.state != "finished"]
    notes += [f"{study.name} has no trial that ended" for study in studies if not study.trials]
    budget, counts = groups[0].budget, [len(group.trials) for group in groups]
    if max(counts) > budget:
        notes.append(f"equal budgets: the first {budget} of up to {counted(max(counts), 'trial')} of each group")
    if budget < _FEW and len(groups) > 1:
        few = f"{counted(budget, 'trial')} of each group {'is' if budget == 1 else 'are'} few"
        what = by if by == METHOD else f"value of {by}"
        more = "differences may be chance; add some with `loraxs-search extend`"
        if by != STUDY:
            more = f"a search tries bad values less often; launch a study for each {what}"
        notes.append(f"{few}: {more}")
    steps = {study.info.search.max_steps for study in studies}
    if len(steps) > 1:
        notes.append(f"trials of these studies train for {' or '.join(map(str, sorted(steps)))} steps")
    if len({study.info.search.checkpoint for study in studies}) > 1:
        notes.append("search.checkpoint differs: the best of several reports looks better than the last one")
    if len(groups) > 2:
        notes.append(f"{len(groups) - 1} differences are tested: hold each p to {0.05 / (len(groups) - 1):.3g}")
    return notes
