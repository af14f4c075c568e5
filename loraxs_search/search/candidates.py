"""The end of a search: the best trials by validation are scored on held-out rows and sealed as adapter folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from loraxs_search.errors import StudyError
from loraxs_search.records import Candidate, Confirmation, HostInfo, Manifest, Task, TrialRecord, TrialSpec, TrialState
from loraxs_search.registry import model_card, seal
from loraxs_search.search.crew import Crew
from loraxs_search.search_space import Space
from loraxs_search.studies import StudyFolder


def completed_trials(records: Iterable[TrialRecord], task: Task) -> list[TrialRecord]:
    """Return the trials that trained all their steps, best last validation score first; ties go to the older trial."""
    done = [r for r in records if r.state is TrialState.COMPLETE]
    sign = -1.0 if task.direction == "maximize" else 1.0
    return sorted(done, key=lambda r: (sign * r.reports[-1].metrics[task.metric], r.trial_id))


def keep_adapter(
    crew: Crew, folder: StudyFolder, space: Space, record: TrialRecord, *, score: bool, run_id: str | None
) -> Candidate:
    """Write a trial's sealed adapter folder; with `score` the candidate it returns has test metrics.

    Raises:
        StudyError: the trial's snapshot is gone.
    """
    snapshot = folder.read_snapshot(record.trial_id)
    if snapshot is None:
        raise StudyError(f"A completed trial must have a snapshot, but {folder.path} has none of {record.trial_id}.")
    spec = crew.spec(record.trial_id, record.params)
    confirmation = crew.confirm(spec, snapshot, score=score)
    manifest = _manifest(crew.info, folder.name, space, record, spec, confirmation, run_id)
    files = {**confirmation.files, "README.md": model_card(manifest).encode()}
    seal(folder.write_adapter(record.trial_id, files), manifest)
    return Candidate(
        study=folder.name,
        trial_id=record.trial_id,
        task=space.task.name,
        test_metrics=confirmation.test_metrics,
        validation_metrics=manifest.validation_metrics,
        stored_bytes=manifest.size.stored_bytes,
        data_fingerprint=manifest.data_fingerprint,
        base_digest=manifest.base_digest,
    )


def _manifest(
    info: HostInfo,
    study: str,
    space: Space,
    record: TrialRecord,
    spec: TrialSpec,
    confirmation: Confirmation,
    run_id: str | None,
) -> Manifest:
    return Manifest(
        task=space.task,
        base_model=replace(space.base_model, revision=info.base.revision or space.base_model.revision),
        base_digest=info.base.weight_digest,
        data_fingerprint=info.data_fingerprint,
        study=study,
        trial_id=record.trial_id,
        params=record.params,
        hyperparameters=spec.hyperparameters,
        validation_metrics=record.reports[-1].metrics,
        test_metrics=confirmation.test_metrics,
        size=record.reports[-1].size,
        probe=confirmation.probe,
        versions=info.versions,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=run_id,
    )
