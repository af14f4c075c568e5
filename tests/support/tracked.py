"""A study's log and the tracker that follows it: what a driver tells the one reaches MLflow through the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraxs_search.log.events import (
    AdapterWritten,
    BaselinesMeasured,
    DriverStarted,
    ReportWritten,
    SearchFinished,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.codec import Scalar
from loraxs_search.records.search import Baseline, SearchPlan
from loraxs_search.records.trial import Hyperparameters, TrialReport, TrialState
from loraxs_search.tracking.tracker import Tracker
from loraxs_search.versions import with_python


class Tracked:
    """Appends to a log, and has the rest of a tracker."""

    def __init__(self, study: str, folder: Path, uri: str, experiment: str, study_id: str = "an-id") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.journal = StudyLog(folder / "journal.jsonl", study)
        self.tracker = Tracker(study, folder, uri, experiment, study_id=study_id)

    def search_started(
        self, space_yaml: str, plan: SearchPlan, params: Mapping[str, Scalar] | None = None, gpus: Sequence[str] = ()
    ) -> None:
        versions = {f"version.{name}": version for name, version in with_python().items()}
        tags = versions | {"hardware.gpus": ", ".join(gpus)}
        run = {"space_yaml": space_yaml, "plan": plan, "params": dict(params or {}), "tags": tags}
        self.journal.append(DriverStarted(since=time.time(), **run))

    def trial_started(
        self, trial_id: str, params: Mapping[str, Scalar], hyperparameters: Hyperparameters | None = None
    ) -> None:
        """Tell that a trial has started, even where it has before."""
        started = TrialStarted(at=time.time(), trial_id=trial_id, params=dict(params), hyperparameters=hyperparameters)
        self.journal.append(started)

    def trial_reported(self, report: TrialReport) -> None:
        self._begin(report.trial_id)
        at = self.journal.records[report.trial_id].started_at + report.device_s
        self.journal.append(TrialReported(at=at, report=report))

    def trial_finished(
        self, trial_id: str, state: TrialState, reason: str = "", wall_s: float = 0.0, worked_s: float | None = None
    ) -> None:
        self._begin(trial_id)
        record = self.journal.records[trial_id]
        if record.state is TrialState.RUNNING:
            worked = {"at": record.started_at + wall_s, "worked_s": wall_s if worked_s is None else worked_s}
            self.journal.append(TrialEnded(trial_id=trial_id, state=state, reason=reason, **worked))

    def adapter_logged(self, trial_id: str, folder: Path, run_of: str = "") -> None:
        self.journal.append(AdapterWritten(trial_id=trial_id, folder=str(folder), run_of=run_of))

    def report_written(self, path: Path) -> None:
        self.journal.append(ReportWritten(path=str(path)))

    def baselines_measured(self, baselines: Sequence[Baseline]) -> None:
        self.journal.append(BaselinesMeasured(baselines=tuple(baselines)))

    def search_finished(self, state: Any, summary: Mapping[str, Scalar] | None = None) -> None:
        self.journal.append(SearchFinished(state=state, summary=summary or {}))

    def __getattr__(self, name: str) -> Any:
        """Return what else the log or the tracker can do."""
        return getattr(self.journal if name == "has_report" else self.tracker, name)

    def __enter__(self) -> Tracked:
        return self

    def __exit__(self, *_: object) -> None:
        self.tracker.close()

    def _begin(self, trial_id: str) -> None:
        if trial_id not in self.journal.records:
            self.trial_started(trial_id, {})
