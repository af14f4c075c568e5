"""What studies say of each method, or of each value of a parameter: the best that equal budgets found."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from loraxs_search.assets import NOTHING, PROBE
from loraxs_search.errors import StudyError, UsageError, counted, shortened, unknown_name
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.records.codec import Direction, Scalar, sign_of
from loraxs_search.records.search import Candidate
from loraxs_search.records.task import Identity, Task
from loraxs_search.records.trial import TrialState
from loraxs_search.registry.finalist import NOISE, SeedStatistics, trial_of
from loraxs_search.reports.importances import Importances
from loraxs_search.reports.leaderboard import pareto_front
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.record_files import read_text

METHOD, STUDY = "method", "study"  # what trials can be grouped by beside their parameters
# Fields of a task: rows are compared by content, scores are in the labels' own units, and other metrics, the words of a
# question and operating points change no score.
_NOT_COMPARED = {"source", "metrics", "standardized", "question", "operating_points"}


MAX_GROUPS = 12
_FEW = 4  # trials of a group; with fewer, its best is mostly luck
_HINT = "`loraxs-search status STUDY` shows what trials tried"


# ---- what studies hold -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Point:
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
class _Trial:
    """A trial that has ended.

    Args:
        steps: How far it came.
        point: None of a trial that has not trained all its steps, or has no finite score.
        has_probe: Whether its study had a linear probe for heads to start at.
    """

    name: str
    study: str
    method: str
    params: Mapping[str, Scalar]
    steps: int
    device_s: float
    point: _Point | None
    has_probe: bool

    def value(self, by: str) -> Scalar | None:
        """Return what it had of a parameter, its default where the space leaves it out; None if it takes none."""
        if by in (STUDY, METHOD):
            return self.study if by == STUDY else self.method
        given = self.params.get(by)
        if by not in self.params:
            from loraxs_search.methods import METHODS
            from loraxs_search.search_space.parameters import COMMON, parameter_specs

            entry = METHODS.importable().get(self.method)  # None of what a space names, or another distribution has
            spec = (parameter_specs(entry) if entry else COMMON).get(by)
            given = spec.default if spec else None
        return "random" if by == "head_init" and given == "probe" and not self.has_probe else given


@dataclass(frozen=True)
class _Study:
    """A study on disk, read once.

    Args:
        identity: What its rows and its base are by content; None if nothing has been loaded yet.
        trials: Those that have ended, in the order they were started.
    """

    folder: StudyFolder
    state: str
    candidates: Sequence[Candidate]
    identity: Identity | None
    trials: Sequence[_Trial]


def _read(name: str) -> _Study:
    folder = StudyFolder.open(name)
    state, candidates, identity = folder.state(), folder.candidates() or (), folder.identity.read()
    has_probe = folder.assets().get(PROBE, NOTHING) != NOTHING  # else heads cannot start at it
    rule, trials, method = folder.checkpoint_selection, list[_Trial](), ""
    for record in folder.journal().records.values():
        if record.state is TrialState.RUNNING:
            continue
        if METHOD not in record.params and not method:  # the only one of the space
            from loraxs_search.search_space.document import as_mapping, parse_document

            # The text was valid once, whatever has become of the space or of the installed methods.
            given = as_mapping(parse_document(read_text(folder.space_path), name).data).get(METHOD)
            while isinstance(given, dict | list):
                given = next(iter(given.values() if isinstance(given, dict) else given), None)
            method = str(given or LoraXS.name)
        last, point = record.reports[-1] if record.reports else None, None
        own = f"{name}/{record.trial_id}", str(record.params.get(METHOD, method))
        if last is not None and record.state is TrialState.COMPLETE:
            score = rule.select(record.reports).metrics[rule.metric]
            point = _Point(*own, score, **vars(last.size)) if math.isfinite(score) else None
        trials.append(
            _Trial(
                *(own[0], name, own[1]),
                params=record.params,
                steps=record.step,
                device_s=last.device_s if last else 0.0,
                point=point,
                has_probe=has_probe,
            )
        )
    return _Study(folder, state, candidates, identity, trials)


# ---- differences: two groups that were both tested are compared by paired rows, others by their seeds ----------------
@dataclass(frozen=True)
class _Difference:
    """How much better a group is than the first one.

    Args:
        gain: In the task's metric, turned so that more is better.
        p_value: Chance of a difference this large, in either direction, if there were none; None if nothing tells.
        by: `rows`: both finalists answered the same test rows, which are compared one by one. `seeds`: the means over
            seeds on validation rows, by Welch's t-test.
    """

    gain: float
    p_value: float | None
    by: Literal["rows", "seeds"]


def _difference(
    first: _ComparedGroup, second: _ComparedGroup, finalists: Mapping[str, tuple[Candidate, Path]], task: Task
) -> _Difference | None:
    """Return how `second` differs from `first`, by paired rows or else by seeds; None if neither tells.

    Args:
        finalists: By name, with the files of their answers to the test rows.
    """
    from loraxs_search.registry.evidence import MIN_ROWS, ScoredRows, p_value
    from loraxs_search.tasks.kinds import kind_of

    sign, pair = (
        sign_of(task.direction),
        [finalists[group.tested] for group in (first, second) if group.tested in finalists],
    )
    if len(pair) == 2 and pair[0][0].test_fingerprint == pair[1][0].test_fingerprint:
        rows = [ScoredRows.from_bytes(path.read_bytes()) for _, path in pair]
        if len(rows[0].labels) >= MIN_ROWS:
            known = kind_of(task).metrics[task.metric]
            sides = [p_value(known, sign, *each) for each in (rows, rows[::-1])]
            smaller = min((p for p in sides if p is not None), default=None)
            before, after = (finalist.test_metrics[task.metric] for finalist, _ in pair)
            return _Difference(sign * (after - before), None if smaller is None else min(1.0, 2 * smaller), "rows")

    scores = second.seed_scores, first.seed_scores
    if not all(scores):
        return None
    p = None  # of one seed, or where seeds do not differ at all
    if min(map(len, scores)) > 1 and max(max(some) - min(some) for some in scores) > NOISE:
        from scipy.stats import ttest_ind_from_stats

        both = [(statistics.fmean(some), statistics.stdev(some), len(some)) for some in scores]
        p = float(ttest_ind_from_stats(*both[0], *both[1], equal_var=False).pvalue)
    gain = sign * (statistics.fmean(scores[0]) - statistics.fmean(scores[1]))
    return _Difference(gain, p, "seeds")


# ---- groups ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _ComparedGroup:
    """The trials of one method, or of one value of a parameter.

    Args:
        value: What they have in common; None if the method does not take the parameter. `label` is shown to users.
        num_trials: How many have ended; the first `Comparison.budget` of them are compared.
        steps, device_s: What those took in all.
        points: Those that trained all their steps and store at most `max_bytes`, in the order they were started.
        front: The best ones for their size, smallest first.
        best: The best score among `points`; None if there is none.
        seed_scores: The task's metric of the best one and of its refits on all validation rows, its own first; none
            where it is no candidate.
        over_seeds: Mean and deviation of these.
        tested: The finalist that is of this group, which answered the test rows; of several the best one on validation
            rows, by which they were chosen. Empty without one.
        test_score: The task's metric of it.
        difference: From the first group; None for that one itself, and where nothing tells.
    """

    value: Scalar | None
    label: str
    studies: tuple[str, ...]
    num_trials: int
    steps: int
    device_s: float
    points: tuple[_Point, ...]
    front: tuple[_Point, ...]
    best: _Point | None
    seed_scores: tuple[float, ...]
    over_seeds: SeedStatistics | None
    tested: str
    test_score: float | None
    difference: _Difference | None = None


@dataclass(frozen=True)
class Comparison:
    """Studies of one task, compared.

    Args:
        by: `method`, `study`, or a parameter.
        metric: What trials are compared by at their reports; `direction` says which way is better.
        task_metric: What candidates and test rows are scored by.
        studies: Name to state: `finished`, `running` or `interrupted`.
        budget: The first so many trials of each group are compared: as many as the smallest has.
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
    groups: tuple[_ComparedGroup, ...]
    importances: tuple[Importances, ...] = ()
    notes: tuple[str, ...] = ()


def compare(
    *studies: str,
    by: str = METHOD,
    against: str | None = None,
    max_bytes: int | None = None,
) -> Comparison:
    """Compare methods, or values of a parameter, by the best adapter that each found within the same number of trials.

    Args:
        studies: Names; their tasks, rows and bases must be the same.
        by: `method`, `study`, or a parameter, its default included where a space leaves it out.
        against: The value that the others are compared with; the first one by default.
        max_bytes: Larger adapters are left out.
    Raises:
        StudyError: a study is missing, no trial has ended, or studies are not of one task, the same rows and one base.
        UsageError: no trial has the parameter, or too many values of it.
    """
    if repeated := sorted({name for name in studies if studies.count(name) > 1}):
        raise UsageError(
            f"Each study must be named once, but got {', '.join(repeated)} twice.",
            hint="name it once: its trials are grouped by --by",
        )
    opened = [_read(name) for name in studies]
    one = opened[0]
    for other in opened[1:]:
        unread = [study.folder.name for study in (one, other) if study.identity is None]
        differences = [f"{name} has not loaded its rows yet" for name in unread]
        if one.identity is not None and other.identity is not None:
            tasks, identities = [study.folder.info.task for study in (one, other)], (one.identity, other.identity)
            names = [each.name for each in dataclasses.fields(Task) if each.name not in _NOT_COMPARED]
            pairs: list[Any] = [  # a name, and what either has
                *((f"task.{name}", *(getattr(task, name) for task in tasks)) for name in names),
                ("data fingerprint", *(identity.data_fingerprint[:16] for identity in identities)),
                ("base digest", *(identity.base_digest[:16] for identity in identities)),
            ]
            unlike = [pair for pair in pairs if pair[1] != pair[2]]
            differences = [f"{name} is {shortened(left)} and {shortened(right)}" for name, left, right in unlike]
        if differences:
            raise StudyError(
                f"Studies that are compared must have one task, the same rows and one base, but {one.folder.name} and "
                f"{other.folder.name} differ: {'; '.join(differences)}.",
                hint="compare studies of one task; each task has its own comparison",
            )
    info = one.folder.info
    task, by_value = info.task, _grouped(opened, by, against)
    budget = min(map(len, by_value.values()))
    finalists = dict[str, tuple[Candidate, Path]]()
    for study in opened:
        for finalist in (each for each in study.candidates if each.test_metrics):
            if (path := study.folder.confirmed.rows_path(finalist.trial_id)).is_file():
                finalists[finalist.name] = finalist, path
    first, *others = (_group(value, trials, opened, budget, max_bytes) for value, trials in by_value.items())
    groups = [first, *(replace(each, difference=_difference(first, each, finalists, task)) for each in others)]
    return Comparison(
        by=by,
        task=task.registered_name,
        base_model=info.base_model.id,
        metric=task.search_metric,
        direction=task.search_direction,
        task_metric=task.metric,
        studies={study.folder.name: study.state for study in opened},
        budget=budget,
        max_bytes=max_bytes,
        groups=tuple(groups),
        importances=tuple(Importances.of(study.folder) for study in opened),
        notes=tuple(_notes(opened, groups, budget, by)),
    )


def _grouped(studies: Sequence[_Study], by: str, against: str | None) -> dict[Scalar | None, list[_Trial]]:
    """Return trials by what they have: numbers in order, others in the order in which their first trials come.

    Args:
        against: The value whose group comes first.
    """
    trials = [trial for study in studies for trial in study.trials]
    if not trials:
        raise StudyError(
            "A study must have trials that have ended to be compared, but there are none of "
            f"{', '.join(study.folder.name for study in studies)}.",
            hint=f"watch it with `loraxs-search status {studies[0].folder.name}`",
        )
    grouped: dict[Scalar | None, list[_Trial]] = {}
    for trial in trials:
        grouped.setdefault(trial.value(by), []).append(trial)
    if set(grouped) == {None}:
        known = {METHOD, STUDY, *(name for trial in trials for name in trial.params)}
        raise UsageError(unknown_name("--by", by, known), hint=_HINT)
    if len(grouped) > MAX_GROUPS:
        raise UsageError(
            f"`--by` must be a parameter with at most {MAX_GROUPS} values, but {by} has {len(grouped)} here, such as "
            f"{shortened(trials[0].value(by))}.",
            hint="compare by a parameter that is chosen from a list",
        )
    numbers = sorted(value for value in grouped if isinstance(value, int | float))
    order: list[Scalar | None] = [*numbers, *(value for value in grouped if not isinstance(value, int | float))]
    if against is not None:
        labels = ["-" if value is None else str(value) for value in order]
        if against not in labels:
            raise UsageError(unknown_name("--against", against, labels), hint=_HINT)
        order.insert(0, order.pop(labels.index(against)))
    return {value: grouped[value] for value in order}


def _group(
    value: Scalar | None, trials: Sequence[_Trial], studies: Sequence[_Study], budget: int, max_bytes: int | None
) -> _ComparedGroup:
    """Return what the first trials of a group, as many as the budget has, found."""
    task, used, most = studies[0].folder.info.task, trials[:budget], math.inf if max_bytes is None else max_bytes
    points = tuple(it.point for it in used if it.point and it.point.stored_bytes <= most)
    sign, task_sign = sign_of(task.search_direction), sign_of(task.direction)
    best = max(points, key=lambda point: sign * point.score, default=None)

    candidates = [candidate for study in studies for candidate in study.candidates]
    chosen, scores = next((c for c in candidates if best and c.name == best.trial), None), list[float]()
    if chosen is not None:
        metrics = [chosen.validation_metrics, *(refit.validation_metrics for refit in chosen.refits)]
        scores = [score for each in metrics if math.isfinite(score := each.get(task.metric, math.nan))]
    names = {point.trial for point in points}
    finalist = max(
        (c for c in candidates if c.test_metrics and f"{c.study}/{trial_of(c.trial_id)}" in names),
        key=lambda c: task_sign * c.validation_metrics.get(task.metric, -task_sign * math.inf),
        default=None,
    )
    return _ComparedGroup(
        value=value,
        label="-" if value is None else str(value),
        studies=tuple(dict.fromkeys(trial.study for trial in used)),
        num_trials=len(trials),
        steps=sum(trial.steps for trial in used),
        device_s=sum(trial.device_s for trial in used),
        points=points,
        front=tuple(pareto_front(points, lambda point: (sign * point.score, point.stored_bytes))),
        best=best,
        seed_scores=tuple(scores),
        over_seeds=SeedStatistics.of(scores) if scores else None,
        tested=finalist.name if finalist else "",
        test_score=finalist.test_metrics.get(task.metric) if finalist else None,
    )


def _notes(studies: Sequence[_Study], groups: Sequence[_ComparedGroup], budget: int, by: str) -> list[str]:
    """Return what limits the comparison."""
    notes = [
        f"{study.folder.name} is {study.state}: its trials so far" for study in studies if study.state != "finished"
    ]
    notes += [f"{study.folder.name} has no trial that ended" for study in studies if not study.trials]
    counts = [group.num_trials for group in groups]
    if max(counts) > budget:
        notes.append(f"equal budgets: the first {budget} of up to {counted(max(counts), 'trial')} of each group")
    if budget < _FEW and len(groups) > 1:
        few = f"{counted(budget, 'trial')} of each group {'is' if budget == 1 else 'are'} few"
        what = by if by == METHOD else f"value of {by}"
        more = "differences may be chance; add some with `loraxs-search extend`"
        if by != STUDY:
            more = f"a search tries bad values less often; launch a study for each {what}"
        notes.append(f"{few}: {more}")
    steps = {study.folder.info.search.max_steps for study in studies}
    if len(steps) > 1:
        notes.append(f"trials of these studies train for {' or '.join(map(str, sorted(steps)))} steps")
    if len({study.folder.info.search.checkpoint for study in studies}) > 1:
        notes.append("search.checkpoint differs: the best of several reports looks better than the last one")
    if len(groups) > 2:
        notes.append(f"{len(groups) - 1} differences are tested: hold each p to {0.05 / (len(groups) - 1):.3g}")
    return notes
