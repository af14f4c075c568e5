"""Studies as searches leave them, from scores: for whoever compares."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.trial import FixedTrial

from loraxs_search.errors import SpaceError
from loraxs_search.log.events import TrialEnded, TrialReported, TrialStarted
from loraxs_search.records.base import Identity
from loraxs_search.records.codec import to_json
from loraxs_search.records.literals import Scalar
from loraxs_search.records.promotion import Candidate, PromotionRule, Refit
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.records.trial import AdapterSize, Proposal, TrialReport, TrialState
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.space import Space
from loraxs_search.studies.folder import StudyFolder
from support.studies import TASK, study

IDENTITY = Identity("base" * 16, "data" * 16)


@dataclass(frozen=True)
class Tried:
    """A trial and how it ended: complete with its last score, or pruned, failed or running as `state` says."""

    params: Mapping[str, Scalar]
    score: float
    stored_bytes: int = 1000
    r_parameters: int = 100
    state: TrialState = TrialState.COMPLETE
    without_projection: int | None = None


def searched(
    name: str,
    trials: Sequence[Tried],
    *,
    task: Task = TASK,
    space: str = "task: sst2\n",
    identity: Identity | None = IDENTITY,
    finished: bool = True,
    max_steps: int = 20,
    plan: SearchPlan | None = None,
    promotion: PromotionRule | None = None,
) -> StudyFolder:
    """Create a study with these trials; a finished one has its best trial as only candidate, without refits."""
    made = replace(plan or SearchPlan(), trials=max(1, len(trials)), max_steps=max_steps, report_every=10)
    folder = study(name, task=task, search=made, promotion=promotion)
    (folder.path / "space.yaml").write_text(space)
    known = _space(space, folder)
    if identity is not None:
        folder.identity.write(identity)
    journal = folder.journal()
    for number, tried in enumerate(trials):
        trial_id, size = (
            f"{number:05d}",
            AdapterSize(tried.r_parameters, 10, tried.stored_bytes, tried.without_projection),
        )
        journal.append(
            TrialStarted(
                trial_id=trial_id,
                params=tried.params,
                proposal=proposal(known, tried.params) if known else chosen(trials, tried.params),
            )
        )
        if tried.state is TrialState.FAIL:
            journal.append(TrialEnded(trial_id=trial_id, state=tried.state, reason="it failed"))
            continue
        steps = (10,) if tried.state is not TrialState.COMPLETE else (10, max_steps)
        for step in steps:
            metrics = dict.fromkeys((*task.metrics, task.metric, task.search_metric), tried.score)
            journal.append(TrialReported(report=TrialReport(trial_id, step, metrics, 0.5, step / 10, 100 * step, size)))
        if tried.state is not TrialState.RUNNING:
            journal.append(TrialEnded(trial_id=trial_id, state=tried.state, reason=""))
    if finished:
        folder.write_candidates([])
    return folder


def _space(text: str, folder: StudyFolder) -> Space | None:
    """Return a study's space, which is then in its folder as at launch; None where the text is none."""
    try:
        space = parse_space(text, source="space.yaml", folder=folder.path)
    except SpaceError:
        return None
    (folder.path / "space.json").write_text(to_json(replace(space, text="")))
    return space


def proposal(space: Space, params: Mapping[str, Scalar]) -> Proposal:
    """Return params of a space as a sampler would have proposed them."""
    fixed = FixedTrial(space.drawn_params(params))
    space.suggest(fixed)
    distributions = {name: json.loads(distribution_to_json(each)) for name, each in fixed.distributions.items()}
    return Proposal(fixed.params, distributions)


def chosen(trials: Sequence[Tried], params: Mapping[str, Scalar]) -> Proposal:
    """Return params as if each was one of those that some trial has."""
    choices = {name: list(dict.fromkeys(it.params[name] for it in trials if name in it.params)) for name in params}
    distributions = {name: CategoricalDistribution(values) for name, values in choices.items()}
    return Proposal(params, {name: json.loads(distribution_to_json(each)) for name, each in distributions.items()})


def confirm(
    folder: StudyFolder,
    trial_id: str,
    scores: Sequence[float],
    answers: Sequence[int] | None = None,
    labels: Sequence[int] = (),
    test_fingerprint: str = "test",
    slices: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Make a trial a candidate of its study, beside those that there are.

    Args:
        scores: Its own on validation rows, then those of its refits.
        answers: To the test rows; with these it is the finalist.
        slices: Of the test rows, by column.
    """
    task, candidates = folder.info.task, folder.candidates() or []
    refits = [Refit(number, {task.metric: score}) for number, score in enumerate(scores[1:], start=1)]
    tested = {} if answers is None else {task.metric: sum(map(int.__eq__, answers, labels)) / len(labels)}
    record = folder.journal().records[trial_id]
    candidate = Candidate(
        folder.name,
        trial_id,
        task.registered_name,
        tested,
        {task.metric: scores[0]},
        record.reports[-1].size.stored_bytes,
        IDENTITY.data_fingerprint,
        IDENTITY.base_digest,
        refits=tuple(refits),
        test_fingerprint=test_fingerprint,
    )
    if answers is not None:
        folder.confirmed.keep_finalist(candidate, ScoredRows.of(answers, labels, slices=slices).to_bytes())
    folder.write_candidates([*candidates, candidate])
