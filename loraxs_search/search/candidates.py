"""The end of a search: the best trials by validation are scored on held-out rows and sealed as adapter folders.

Every piece of work is found again in the study folder once it is done, so that a killed driver does none of it twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from loraxs_search.errors import StudyError
from loraxs_search.records import (
    Candidate,
    Confirmation,
    Manifest,
    Refit,
    Task,
    TrialRecord,
    TrialReport,
    TrialSpec,
    TrialState,
)
from loraxs_search.registry import ScoredRows, factors_at, install_factors, model_card, seal
from loraxs_search.search.crew import Crew
from loraxs_search.search.interrupted import SearchInterruptedError
from loraxs_search.search.refits import refit_spec
from loraxs_search.search_space import Space
from loraxs_search.studies import ScoredRefit, StudyFolder

log = logging.getLogger(__name__)


def completed_trials(records: Iterable[TrialRecord], task: Task) -> list[TrialRecord]:
    """Return the trials that trained all their steps, best last validation score first; ties go to the older trial."""
    done = [r for r in records if r.state is TrialState.COMPLETE]
    sign = -1.0 if task.direction == "maximize" else 1.0
    return sorted(done, key=lambda r: (sign * r.reports[-1].metrics[task.metric], r.trial_id))


@dataclass(frozen=True)
class Confirming:
    """Confirms trials of one study: trains them again from fresh seeds, scores them, and keeps their adapters.

    Validation scores alone choose who is confirmed, test scores alone are told of it. What is kept is the trial that
    was found, not a refit: its test score is that of the very files that others load.
    """

    crew: Crew
    folder: StudyFolder
    space: Space
    stop: threading.Event

    def refit(self, records: Sequence[TrialRecord]) -> None:
        """Train and score `promotion.seeds` refits of each trial; those that are there already are left alone.

        Raises:
            SearchInterruptedError: stopped from outside.
        """
        wanted = [spec for record in records for spec in self._refits(record)]
        done = self.folder.confirmations()
        lacking = [spec for spec in wanted if done.refit(spec.trial_id) is None]
        if lacking:
            self.crew.refit(lacking, self)

    def keep(self, record: TrialRecord, *, score: bool, run_id: str | None) -> Candidate | None:
        """Write a trial's sealed adapter folder, unless it is there; return a candidate when it is scored.

        Raises:
            StudyError: the trial's snapshot is gone.
        """
        confirmed = self.folder.confirmations()
        if score and (done := confirmed.candidate(record.trial_id)):
            return done
        if not score and (self.folder.adapter_path(record.trial_id) / "manifest.json").exists():
            return None
        spec = self.crew.spec(record.trial_id, record.params)
        confirmation = self.crew.confirm(spec, self._snapshot(spec), score=score)
        refits = [confirmed.refit(other.trial_id) for other in self._refits(record)] if score else []
        found = [refit for refit in refits if refit is not None]
        manifest = self._manifest(record, spec, confirmation, tuple(refit.refit for refit in found), run_id)
        files = {**confirmation.files, "README.md": model_card(manifest).encode()}
        seal(self.folder.write_adapter(record.trial_id, files), manifest)
        if not score:
            return None
        self._bring_factors(confirmation)
        rows = ScoredRows.of(
            confirmation.predictions, confirmation.labels, [refit.predictions for refit in found if refit.predictions]
        )
        candidate = self._candidate(manifest)
        confirmed.write_candidate(candidate, rows.to_bytes())
        return candidate

    # ---- what `refits.train` asks ------------------------------------------------------------------------------------
    def snapshot(self, spec: TrialSpec) -> bytes | None:
        return self.folder.read_snapshot(spec.trial_id)

    def advanced(self, spec: TrialSpec, report: TrialReport, snapshot: bytes) -> None:
        self.folder.write_snapshot(spec.trial_id, snapshot)
        if report.step < spec.hyperparameters.max_steps:
            return
        confirmation = self.crew.confirm(spec, snapshot, score=True)
        refit = Refit(spec.hyperparameters.seed, report.metrics, confirmation.test_metrics)
        self.folder.confirmations().write_refit(spec.trial_id, ScoredRefit(refit, confirmation.predictions))

    def failed(self, spec: TrialSpec, reason: str) -> None:
        refit = Refit(spec.hyperparameters.seed, failed=reason)
        self.folder.confirmations().write_refit(spec.trial_id, ScoredRefit(refit))

    def check_stopped(self) -> None:
        if self.stop.is_set():
            raise SearchInterruptedError(
                f"Study {self.folder.name!r} was interrupted: its trials have ended, its candidates are not confirmed.",
                hint=f"go on with `loraxs-search resume {self.folder.name}`",
            )

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _refits(self, record: TrialRecord) -> list[TrialSpec]:
        spec = self.crew.spec(record.trial_id, record.params)
        return [refit_spec(spec, number) for number in range(1, self.space.promotion.seeds + 1)]

    def _snapshot(self, spec: TrialSpec) -> bytes:
        snapshot = self.folder.read_snapshot(spec.trial_id)
        if snapshot is None:
            raise StudyError(
                f"A completed trial must have a snapshot, but {self.folder.path} has none of {spec.trial_id}."
            )
        return snapshot

    def _bring_factors(self, confirmation: Confirmation) -> None:
        """Have the factors that the adapter stands on in this machine's cache: promotion registers them."""
        for key, checksum in confirmation.factors.items():
            if factors_at(key, checksum) is None:
                install_factors(key, self.crew.factor_file(key))

    def _candidate(self, manifest: Manifest) -> Candidate:
        return Candidate(
            study=self.folder.name,
            trial_id=manifest.trial_id,
            task=self.space.task.name,
            test_metrics=manifest.test_metrics,
            validation_metrics=manifest.validation_metrics,
            stored_bytes=manifest.size.stored_bytes,
            data_fingerprint=manifest.data_fingerprint,
            base_digest=manifest.base_digest,
            base_model=manifest.base_model.id,
            refits=manifest.refits,
            study_id=self.folder.info.study_id,
        )

    def _manifest(
        self,
        record: TrialRecord,
        spec: TrialSpec,
        confirmation: Confirmation,
        refits: tuple[Refit, ...],
        run_id: str | None,
    ) -> Manifest:
        info, space, hyper = self.crew.info, self.space, spec.hyperparameters
        adapted = [module for module in info.modules if module.name in hyper.target_modules]
        return Manifest(
            task=space.task,
            base_model=replace(space.base_model, revision=info.base.revision or space.base_model.revision),
            base_digest=info.base.weight_digest,
            data_fingerprint=info.data_fingerprint,
            study=self.folder.name,
            trial_id=record.trial_id,
            params=record.params,
            hyperparameters=hyper,
            validation_metrics=record.reports[-1].metrics,
            test_metrics=confirmation.test_metrics,
            size=record.reports[-1].size,
            probe=confirmation.probe,
            versions=info.versions,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            run_id=run_id,
            refits=refits,
            base_bytes=info.base_bytes,
            lora_parameters=sum(hyper.rank * (m.in_features + m.out_features) for m in adapted),
            factors=confirmation.factors,
        )
