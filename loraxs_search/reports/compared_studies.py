"""Studies as they are compared: what each trial tried, scored and stores. Studies of other rows are refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from loraxs_search.errors import StudyError, UsageError, shortened
from loraxs_search.records.base import Identity
from loraxs_search.records.literals import Scalar
from loraxs_search.records.promotion import Candidate
from loraxs_search.records.trial import AdapterSize, TrialRecord, TrialState
from loraxs_search.reports.study_status import study_state
from loraxs_search.studies.folder import StudyFolder

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
