"""Which trials of a study are candidates; their records, and the manifests of adapter folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from loraxs_search.records.adapter import Manifest
from loraxs_search.records.host import Confirmation, HostInfo
from loraxs_search.records.promotion import Candidate, PromotionRule, Refit
from loraxs_search.records.search import CheckpointSelection, SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.registry.finalist import NOISE, Criterion
from loraxs_search.reports.leaderboard import front
from loraxs_search.search.driver.work_items import Trained
from loraxs_search.search_space.space import Space
from loraxs_search.studies.folder import StudyFolder


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

    If the rule chooses the smallest, trials that no other beats in score and stored bytes together come first, one of
    each size: the best, which tolerance counts from, and then the smallest within tolerance of it; where reports were
    scored by another metric than the rule's, trials that are spread over the sizes. Where all trials are above
    `max_bytes`, they are candidates, and the rule says why none is promoted.

    Args:
        trials: Complete ones, best first.
    """
    selection, limit = CheckpointSelection.of(task, plan), rule.max_bytes
    fitting = [r for r in trials if limit is None or selection.select(r.reports).size.stored_bytes <= limit]
    small = fitting or list(trials)
    if rule.choose == "best":
        return small[: rule.candidates]
    score = {r.trial_id: selection.select(r.reports).metrics[selection.metric] for r in small}
    # Of each size one; more bytes, and a better score, first.
    sized = {selection.select(r.reports).size.stored_bytes: r for r in reversed(front(small, selection))}
    best_first = list(sized.values())
    if Criterion.of(rule, task).metric == selection.metric:
        best = score[best_first[0].trial_id] if best_first else 0.0
        is_within = [abs(best - score[r.trial_id]) <= rule.tolerance + NOISE for r in best_first]
        within = [r for r, is_one in zip(best_first, is_within, strict=True) if is_one]
        first = [*best_first[:1], *reversed(within[1:])]
    else:
        places = max(1, rule.candidates - 1)
        spread = {round(number * (len(best_first) - 1) / places) for number in range(places + 1)}
        first = [best_first[place] for place in sorted(spread)] if best_first else []
    chosen = {r.trial_id: r for r in (*first, *best_first, *small)}
    return list(chosen.values())[: rule.candidates]


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
