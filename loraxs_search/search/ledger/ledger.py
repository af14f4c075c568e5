"""The one place where events of trials are recorded: journal first, then the sampler's study, then tracker and view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from loraxs_search.records import Hyperparameters, KeepRule, Origin, Scalar, TrialRecord, TrialReport, TrialState
from loraxs_search.search.ledger.score_watch import ScoreWatch
from loraxs_search.search.ledger.view import SearchView
from loraxs_search.studies import Journal, StudyFolder, read_reports
from loraxs_search.tracking import Tracker

if TYPE_CHECKING:
    import optuna


class Ledger:
    """Writes every event once and in one order.

    The journal is the truth: an event it already holds goes to nobody again, and after a kill between two of the
    writes `reconcile` brings the others up to it.

    Args:
        keep: What trials are compared by, and which step of a complete one counts.
        watch: Looks at each report; None where nobody is to be warned.
        after_report: Called after each report.
    """

    def __init__(
        self,
        journal: Journal,
        study: optuna.Study,
        tracker: Tracker,
        view: SearchView,
        keep: KeepRule,
        watch: ScoreWatch | None = None,
        after_report: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal, self._study, self._tracker, self._view = journal, study, tracker, view
        self._keep, self._metric, self._watch, self._after_report = keep, keep.metric, watch, after_report
        self._handles: dict[str, optuna.trial.Trial] = {}  # of unfinished trials

    @property
    def records(self) -> dict[str, TrialRecord]:
        return self._journal.records

    def unfinished(self) -> list[TrialRecord]:
        """Return the trials that were started and have not ended."""
        return [r for r in self.records.values() if r.state is TrialState.RUNNING]

    def started(
        self,
        trial_id: str,
        params: Mapping[str, Scalar],
        hyper: Hyperparameters | None,
        handle: optuna.trial.Trial | None = None,
        origin: Origin | None = None,
    ) -> None:
        """Record that a trial starts or continues.

        Args:
            hyper: None of a trial that cannot be, which ends at once.
            handle: Optuna's, when the caller has it.
            origin: Where a new trial comes from.
        """
        if handle is not None:
            self._handles[trial_id] = handle
        record = self._journal.trial_started(trial_id, params, origin)
        self._tracker.trial_started(trial_id, params, hyper, record.lineage)
        self._view.trial_changed(record)

    def reported(self, report: TrialReport) -> None:
        if self._journal.trial_reported(report):
            self._tracker.trial_reported(report)
            self._tell(report)
            self._view.trial_changed(self.records[report.trial_id])
            if self._watch is not None:
                self._watch.reported(report)
            self._after_report()

    def ended(self, trial_id: str, state: TrialState, reason: str) -> None:
        if self._journal.trial_ended(trial_id, state, reason):
            self._end_in_study(self.records[trial_id])
            self._end_in_tracker(self.records[trial_id])
            self._view.trial_changed(self.records[trial_id])

    def reconcile(self, folder: StudyFolder) -> None:
        """Bring journal, sampler's study and tracker into step after a restart.

        A snapshot may hold a report that the driver died before journaling; the journal takes it up first.
        """
        for record in self.unfinished():
            snapshot = folder.read_snapshot(record.trial_id)
            for report in read_reports(snapshot) if snapshot else ():
                self._journal.trial_reported(report)
        from loraxs_search.search.ledger.optuna_values import has_report

        optunas = self._study.get_trials(deepcopy=False)
        for record in self.records.values():
            frozen = optunas[int(record.trial_id)]
            for report in record.reports:
                if not frozen.state.is_finished() and not has_report(frozen, report.step):
                    self._tell(report)
                self._tracker.trial_reported(report)
            if record.state is not TrialState.RUNNING:
                if not frozen.state.is_finished():
                    self._end_in_study(record)
                self._end_in_tracker(record)

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _handle(self, trial_id: str) -> optuna.trial.Trial:
        from loraxs_search.search.ledger.optuna_storage import live_trial

        if trial_id not in self._handles:  # an earlier process asked for it
            frozen = self._study.get_trials(deepcopy=False)[int(trial_id)]
            self._handles[trial_id] = live_trial(self._study, frozen)
        return self._handles[trial_id]

    def _tell(self, report: TrialReport) -> None:
        from loraxs_search.search.ledger.optuna_values import tell_report

        if self.records[report.trial_id].is_hidden:
            return
        tell_report(self._handle(report.trial_id), report, self._metric)

    def _end_in_study(self, record: TrialRecord) -> None:
        from optuna.trial import TrialState as OptunaState

        from loraxs_search.search.ledger.optuna_values import final_values

        handle = self._handle(record.trial_id)
        handle.set_user_attr("reason", record.reason)
        if record.is_hidden:  # samplers pass over what has failed
            handle.set_user_attr("state", record.state.value)
            self._study.tell(handle, state=OptunaState.FAIL)
            del self._handles[record.trial_id]
            return
        complete = record.state is TrialState.COMPLETE
        value = final_values(self._study, self._keep.kept(record.reports), self._metric) if complete else None
        self._study.tell(handle, value, state=OptunaState[record.state.value])
        del self._handles[record.trial_id]

    def _end_in_tracker(self, record: TrialRecord) -> None:
        wall_s = (record.ended_at or record.started_at) - record.started_at
        device_s = record.reports[-1].device_s if record.reports else 0.0
        kept = self._kept_step(record)
        self._tracker.trial_finished(record.trial_id, record.state, record.reason, wall_s, device_s, kept)

    def _kept_step(self, record: TrialRecord) -> int | None:
        """Return the step whose state became the adapter, where that is not the last one as a matter of course."""
        chosen = self._keep.keep == "best" and record.state is TrialState.COMPLETE
        return self._keep.kept(record.reports).step if chosen else None
