"""Records of a search's adapters: its candidates, and the manifests of adapter folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from loraxs_search.records import Candidate, Confirmation, HostInfo, Manifest, Refit
from loraxs_search.search.driver.finishing import Trained
from loraxs_search.search_space import Space
from loraxs_search.studies import StudyFolder


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
