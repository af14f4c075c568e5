"""What studies say of each method, or of each value of a parameter: the best that equal budgets found.

Beside it, which parameters decide whether a trial is among a study's best: PED-ANOVA, by Optuna.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loraxs_search.errors import LoraxsError, StudyError, UsageError, counted, shortened, unknown_name
from loraxs_search.records.base import Identity
from loraxs_search.records.literals import Direction, Scalar
from loraxs_search.records.promotion import Candidate
from loraxs_search.records.task import Task
from loraxs_search.records.trial import AdapterSize, TrialRecord, TrialState
from loraxs_search.registry.finalist import NOISE, SeedStatistics, trial_of
from loraxs_search.reports.leaderboard import pareto_front
from loraxs_search.reports.optuna_study import study_trials
from loraxs_search.reports.study_status import study_state
from loraxs_search.studies.folder import StudyFolder

if TYPE_CHECKING:
    import optuna

METHOD, STUDY = "method", "study"  # what trials can be grouped by beside their parameters
# Fields of a task: rows are compared by content, other metrics change no score, scores are in the labels' own units.
_NOT_COMPARED = {"source", "metrics", "standardized"}


@dataclass(frozen=True)
class ComparedTrial:
    """A trial that has ended.

    Args:
        method: What it trained.
        params: As it drew them.
        seed: Of its start and the order of its rows.
        steps: How far it came.
        score: Of the report of the step that is kept; None of a trial that has not trained all its steps.
        size: What it stores; None if it has no report.
        has_probe: Whether its study had a linear probe for heads to start at.
    """

    study: str
    trial_id: str
    method: str
    params: Mapping[str, Scalar]
    seed: int
    state: TrialState
    steps: int
    device_s: float
    score: float | None
    size: AdapterSize | None
    has_probe: bool

    @property
    def name(self) -> str:
        """Unique among studies."""
        return f"{self.study}/{self.trial_id}"

    def value(self, by: str) -> Scalar | None:
        """Return what it had of a parameter, its default where the space leaves it out; None if it takes none."""
        if by == STUDY:
            return self.study
        if by == METHOD:
            return self.method
        given = self.params[by] if by in self.params else _default(self.method, by)
        return "random" if by == "head_init" and given == "probe" and not self.has_probe else given


class ComparedStudy:
    """A study on disk, read once."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder, self.info = folder, folder.info
        self.state = study_state(folder)
        self.candidates: Sequence[Candidate] = folder.candidates() or ()
        self._has_probe = folder.has_probe

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def trials(self) -> tuple[ComparedTrial, ...]:
        """Its trials that have ended, in the order they were started; warm clones had a start that others had not."""
        records = list(self.folder.journal().records.values())
        return tuple(self._trial(record) for record in records if record.state is not TrialState.RUNNING)

    @property
    def identity(self) -> Identity | None:
        """What its rows and its base are by content; None if nothing has been loaded yet."""
        recorded = self.folder.identity()
        if recorded is None and self.candidates:
            recorded = Identity(self.candidates[0].base_digest, self.candidates[0].data_fingerprint)
        return recorded

    def _trial(self, record: TrialRecord) -> ComparedTrial:
        rule, last, score = self.folder.checkpoint_selection, record.reports[-1] if record.reports else None, math.nan
        if record.state is TrialState.COMPLETE:
            score = rule.select(record.reports).metrics[rule.metric]
        return ComparedTrial(
            study=self.name,
            trial_id=record.trial_id,
            method=str(record.params.get(METHOD, self._method)),
            params=record.params,
            seed=self.info.search.trial_seed(int(record.trial_id)),
            state=record.state,
            steps=last.step if last else 0,
            device_s=last.device_s if last else 0.0,
            score=score if math.isfinite(score) else None,
            size=last.size if last else None,
            has_probe=self._has_probe,
        )

    @cached_property
    def _method(self) -> str:
        """The method of trials whose params name none: the only one of the space."""
        from loraxs_search.search_space.load import single_method

        return single_method(self.folder.space_text())


def read_studies(names: Sequence[str]) -> list[ComparedStudy]:
    """Open studies by name, and refuse those whose scores are not of one task, the same rows and one base.

    Raises:
        StudyError: there is no such study, or two of them differ; the message has the values.
        UsageError: a study is named twice.
    """
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"Each study must be named once, but got {', '.join(repeated)} twice.",
            hint="name it once: its trials are grouped by --by",
        )
    studies = [ComparedStudy(StudyFolder.open(name)) for name in names]
    for other in studies[1:]:
        if differences := _differences(studies[0], other):
            raise StudyError(
                f"Studies that are compared must have one task, the same rows and one base, but {studies[0].name} and "
                f"{other.name} differ: {'; '.join(differences)}.",
                hint="compare studies of one task; each task has its own comparison",
            )
    return studies


def _differences(one: ComparedStudy, other: ComparedStudy) -> list[str]:
    """Return what keeps two studies from being compared, with both values."""
    pairs = [
        (f"task.{field.name}", getattr(one.info.task, field.name), getattr(other.info.task, field.name))
        for field in dataclasses.fields(one.info.task)
        if field.name not in _NOT_COMPARED
    ]
    first, second = one.identity, other.identity
    if first is None or second is None:
        known = ((one, first), (other, second))  # read once: a driver may write one meanwhile
        return [f"{study.name} has not loaded its rows yet" for study, identity in known if identity is None]
    pairs += [
        ("data fingerprint", first.data_fingerprint[:16], second.data_fingerprint[:16]),
        ("base digest", first.base_digest[:16], second.base_digest[:16]),
    ]
    return [f"{name} is {shortened(left)} and {shortened(right)}" for name, left, right in pairs if left != right]


def _default(method: str, parameter: str) -> Scalar | None:
    from loraxs_search.methods import METHODS
    from loraxs_search.search_space.parameter_specs import COMMON, parameter_specs

    entry = METHODS.importable().get(method)  # None of what a space names, or another distribution has
    spec = (parameter_specs(entry) if entry else COMMON).get(parameter)
    return spec.default if spec else None


# Two groups that were both tested are compared by paired rows, others by their seeds.


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
