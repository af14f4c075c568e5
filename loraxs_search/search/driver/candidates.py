"""Which trials of a study are candidates; their records, and the manifests of adapter folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from loraxs_search.pareto import spread_order
from loraxs_search.records import (
    Candidate,
    CheckpointSelection,
    Confirmation,
    FrontTrial,
    HostInfo,
    Manifest,
    PromotionRule,
    Refit,
    SearchPlan,
    Task,
    TrialRecord,
    TrialState,
)
from loraxs_search.registry.finalist import NOISE, Criterion
from loraxs_search.reports.leaderboard import front
from loraxs_search.search.driver.work_items import Trained
from loraxs_search.search_space import Space
from loraxs_search.studies import StudyFolder


def completed_trials(records: Iterable[TrialRecord], selection: CheckpointSelection) -> list[TrialRecord]:
    """Return the trials that trained all their steps, best first by the report of the step that is kept.

    Ties, which few validation rows often make, go to the smaller adapter, then to the older trial.
    """
    sign = -1.0 if selection.direction == "maximize" else 1.0

    def order(record: TrialRecord) -> tuple[float, int, str]:
        kept = selection.select(record.reports)
        return sign * kept.metrics[selection.metric], kept.size.stored_bytes, record.trial_id

    return sorted((record for record in records if record.state is TrialState.COMPLETE), key=order)


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
    selection, limit = CheckpointSelection.of(task, plan), rule.max_bytes
    fitting = [r for r in trials if limit is None or selection.select(r.reports).size.stored_bytes <= limit]
    small = fitting or list(trials)
    if rule.choose == "best" and not plan.objectives:
        return small[: rule.candidates]
    # Of each size one; more bytes, and a better score, first.
    chosen = list({it.stored_bytes: it for it in reversed(front(small, selection))}.values())
    if rule.choose == "smallest":
        chosen = _smallest_first(chosen, rule, task, selection)
    by_name = {record.trial_id: record for record in small}
    first = [by_name.pop(it.trial_id) for it in chosen]
    return [*first, *by_name.values()][: rule.candidates]


def _smallest_first(
    best_first: Sequence[FrontTrial], rule: PromotionRule, task: Task, selection: CheckpointSelection
) -> list[FrontTrial]:
    """Order a front by what the rule would choose."""
    sign = 1.0 if selection.direction == "maximize" else -1.0
    if not best_first or Criterion.of(rule, task).metric != selection.metric:
        by_point = {(sign * it.score, float(it.stored_bytes)): it for it in reversed(best_first)}
        return [by_point[point] for point in spread_order(list(by_point))]
    best, *others = best_first
    within = [it for it in reversed(others) if sign * (best.score - it.score) <= rule.tolerance + NOISE]
    return [best, *within, *(it for it in others if it not in within)]


def make_candidate(
    folder: StudyFolder,
    info: HostInfo,
    adapter: Trained,
    validation_metrics: Mapping[str, float],
    refits: Sequence[Refit],
) -> Candidate:
    """Return the candidate record of an adapter, before any test row is scored."""
    study = folder.info
    return Candidate(
        study=folder.name,
        trial_id=adapter.trial_id,
        task=study.task.registered_name,
        test_metrics={},
        validation_metrics=validation_metrics,
        stored_bytes=adapter.size.stored_bytes,
        data_fingerprint=info.data_fingerprint,
        base_digest=info.base.weight_digest,
        base_model=study.base_model.id,
        refits=tuple(refits),
        study_id=study.study_id,
        test_fingerprint=info.test_fingerprint,
        kept_step=adapter.kept_step,
    )


def make_manifest(
    folder: StudyFolder,
    space: Space,
    info: HostInfo,
    adapter: Trained,
    confirmation: Confirmation,
    candidate: Candidate | None,
    run_id: str | None,
) -> Manifest:
    """Return the manifest of an adapter's folder; a candidate's also has what its trial lacks."""
    hyper = adapter.spec.hyperparameters
    adapted = [module for module in info.modules if module.name in hyper.target_modules]
    return Manifest(
        task=space.task,
        base_model=replace(space.base_model, revision=info.base.revision or space.base_model.revision),
        base_digest=info.base.weight_digest,
        data_fingerprint=info.data_fingerprint,
        study=folder.name,
        trial_id=adapter.trial_id,
        params=adapter.spec.params,
        hyperparameters=hyper,
        validation_metrics=candidate.validation_metrics if candidate else adapter.validation_metrics,
        test_metrics=candidate.test_metrics if candidate else {},
        size=adapter.size,
        probe=confirmation.probe,
        versions=info.versions,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=run_id,
        refits=candidate.refits if candidate else (),
        base_bytes=info.base_bytes,
        lora_parameters=sum(hyper.rank * (m.in_features + m.out_features) for m in adapted),
        factors=confirmation.factors,
        ends=confirmation.ends,
        baselines=candidate.baselines if candidate else (),
        kept_step=adapter.kept_step,
        start_from=folder.info.start_from.adapter if folder.info.start_from and hyper.start_from else None,
        lineage=adapter.lineage,
        setup=info.base.setup,
    )
