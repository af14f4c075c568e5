"""The one place where a trial's fate is recorded: journal first, then the sampler's study, then tracker and view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from loraxs_search.records import Hyperparameters, Scalar, TrialRecord, TrialReport, TrialState
from loraxs_search.search.view import SearchView
from loraxs_search.studies import Journal, StudyFolder, read_reports
from loraxs_search.tracking import Tracker

if TYPE_CHECKING:
    import optuna


class Ledger:
    """Writes every event once and in one order.

    The journal is the truth: an event it already holds is told to no one again, and after a kill between two of the
    writes `reconcile` brings the others up to it.
    """

    def __init__(self, journal: Journal, study: optuna.Study, tracker: Tracker, view: SearchView, metric: str) -> None:
        self._journal, self._study, self._tracker, self._view = journal, study, tracker, view
        self._metric = metric

    @property
    def records(self) -> dict[str, TrialRecord]:
        return self._journal.records

    def unfinished(self) -> list[TrialRecord]:
        """Return the trials that were started and have not ended."""
        return [r for r in self.records.values() if r.state is TrialState.RUNNING]

    def started(self, trial_id: str, params: Mapping[str, Scalar], hyper: Hyperparameters) -> None:
        record = self._journal.trial_started(trial_id, params)
        self._tracker.trial_started(trial_id, params, hyper)
        self._view.trial_changed(record)

    def reported(self, report: TrialReport) -> None:
        if self._journal.trial_reported(report):
            self._tracker.trial_reported(report)
            self._tell_intermediate(report)
            self._view.trial_changed(self.records[report.trial_id])

    def ended(self, trial_id: str, state: TrialState, reason: str) -> None:
        if self._journal.trial_ended(trial_id, state, reason):
            self._tell_end(self.records[trial_id])
            self._track_end(self.records[trial_id])
            self._view.trial_changed(self.records[trial_id])

    def reconcile(self, folder: StudyFolder) -> None:
        """Bring journal, sampler's study and tracker into step after a restart.

        A snapshot may hold a report that the driver died before journaling; the journal takes it up first.
        """
        for record in self.unfinished():
            snapshot = folder.read_snapshot(record.trial_id)
            for report in read_reports(snapshot) if snapshot else ():
                self._journal.trial_reported(report)
        for record in self.records.values():
            for report in record.reports:
                self._tell_intermediate(report)
                self._tracker.trial_reported(report)
            if record.state is not TrialState.RUNNING:
                self._tell_end(record)
                self._track_end(record)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _optuna_trial(self, trial_id: str) -> optuna.trial.FrozenTrial:
        return self._study.get_trials(deepcopy=False)[int(trial_id)]

    def _tell_intermediate(self, report: TrialReport) -> None:
        frozen = self._optuna_trial(report.trial_id)
        if not frozen.state.is_finished() and report.step not in frozen.intermediate_values:
            live_trial(self._study, frozen).report(report.metrics[self._metric], report.step)

    def _tell_end(self, record: TrialRecord) -> None:
        from optuna.trial import TrialState as OptunaState

        frozen = self._optuna_trial(record.trial_id)
        if frozen.state.is_finished():
            return
        live_trial(self._study, frozen).set_user_attr("reason", record.reason)
        complete = record.state is TrialState.COMPLETE
        value = record.reports[-1].metrics[self._metric] if complete else None
        self._study.tell(frozen.number, value, state=OptunaState[record.state.value])

    def _track_end(self, record: TrialRecord) -> None:
        wall_s = (record.ended_at or record.started_at) - record.started_at
        device_s = record.reports[-1].device_s if record.reports else 0.0
        self._tracker.trial_finished(record.trial_id, record.state, record.reason, wall_s, device_s)


def live_trial(study: optuna.Study, frozen: optuna.trial.FrozenTrial) -> optuna.trial.Trial:
    """Return the handle of a trial that an earlier process may have asked for.

    `optuna.trial.Trial` is public and so is its constructor; the storage id it takes has no public accessor.
    """
    import optuna

    return optuna.trial.Trial(study, frozen._trial_id)
