"""The tracker: what a search calls. Every call appends a line to the spool; one thread carries the lines to MLflow."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loraxs_search.errors import HomeError
from loraxs_search.home import disk_faults
from loraxs_search.mlflow_uri import redact
from loraxs_search.records import (
    FrontTrial,
    Hyperparameters,
    Lineage,
    Scalar,
    SearchPlan,
    TrialReport,
    TrialState,
    Yardstick,
)
from loraxs_search.tracking import _environment
from loraxs_search.tracking._recorder import AwayError, Recorder, RefusedError
from loraxs_search.tracking._runs import StudyRuns
from loraxs_search.tracking._spool import Entry, Spool
from loraxs_search.tracking.events import (
    AdapterLogged,
    Event,
    FrontFound,
    HostsMeasured,
    ReportWritten,
    SearchFinished,
    SearchStarted,
    SearchState,
    StudyFacts,
    TrialFinished,
    TrialReported,
    TrialStarted,
    YardsticksMeasured,
    to_line,
)

_logger = logging.getLogger(__name__)
_BATCH = 500  # events applied between two commits of the offset
_LAST_BATCH = 50  # once somebody waits for the end, to see that it comes nearer
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_SILENT_S = 60.0


@dataclass
class _TrialStatus:
    """What is recorded of a trial: its steps, and how it ended."""

    steps: set[int] = field(default_factory=set)
    ended: TrialState | None = None


class Tracker:
    """Records one study, off the search's control loop.

    Calls return once the event is on disk (tens of microseconds; final ones are flushed to the device) and never fail
    because MLflow is away: events wait in `study_dir/tracking.jsonl` and are carried over when it answers again, in
    this process or in the next one that opens the folder. Repeating an event changes nothing: a step of a trial that
    was reported counts once, the first time, and the runs of a study are found again by their tags.

    Args:
        study: The study's name, which the parent run carries.
        study_dir: Its folder; one living tracker at a time.
        uri: The store, as `resolve_uri` gives it.
        experiment: MLflow experiment the runs appear in, created when missing.
    Raises:
        StudyError: another process records this study.
        HomeError: the folder cannot be written.
    """

    def __init__(self, study: str, study_dir: Path, uri: str, experiment: str) -> None:
        self._spool = Spool(study_dir)
        self._uri = uri
        self._refused_path = study_dir / "tracking.refused.jsonl"
        self._trials: defaultdict[str, _TrialStatus] = defaultdict(_TrialStatus)
        self._search_state: SearchState | None = None
        self._yardsticks: tuple[Yardstick, ...] = ()
        self._front: tuple[FrontTrial, ...] = ()
        self._has_report = False
        self._facts: StudyFacts | None = None
        for event in self._spool.history():
            self._note(event)
        self._runs = StudyRuns(
            uri,
            study=study,
            study_id=self._spool.study_id,
            experiment=experiment,
            map_path=study_dir / "tracking.runs.jsonl",
            earlier_trials=self._trials.keys(),
        )
        self._recorder = Recorder(self._runs, self._facts)
        self._trouble: str | None = None
        self._closing = self._stopped = False
        self._hurried = False  # somebody waits, and small batches show that events go over
        self._changed = threading.Condition()
        self._writer = threading.Thread(target=self._write, name="mlflow-writer", daemon=True)
        self._writer.start()

    # ---- what happens ------------------------------------------------------------------------------------------------
    def search_started(
        self,
        space_yaml: str,
        plan: SearchPlan,
        *,
        params: Mapping[str, Scalar] | None = None,
        gpus: Sequence[str] = (),
        facts: StudyFacts | None = None,
    ) -> None:
        """The search starts, or goes on. Versions, git commit and hardware are added here."""
        tags = _environment.tags(gpus)
        self._append(SearchStarted(time.time(), space_yaml, plan, dict(params or {}), tags, facts))

    def trial_started(
        self,
        trial_id: str,
        params: Mapping[str, Scalar],
        hyperparameters: Hyperparameters | None = None,
        lineage: Lineage | None = None,
    ) -> None:
        """A trial starts, or starts again elsewhere; without hyperparameters when its params resolve to none."""
        self._append(TrialStarted(time.time(), trial_id, dict(params), hyperparameters, lineage))

    def trial_reported(self, report: TrialReport) -> None:
        """A trial reports; a step it has reported before is left as it was."""
        steps = self._trials[report.trial_id].steps
        if report.step not in steps:
            self._append(TrialReported(time.time(), report, first=not steps))

    def trial_finished(
        self,
        trial_id: str,
        state: TrialState,
        reason: str = "",
        wall_s: float = 0.0,
        device_s: float = 0.0,
        kept_step: int | None = None,
    ) -> None:
        """A trial ends; the same end reported twice is one end."""
        if self._trials[trial_id].ended is not state:
            self._append(TrialFinished(time.time(), trial_id, state, reason, wall_s, device_s, kept_step))

    def adapter_logged(
        self, trial_id: str, folder: Path, run_of: str = "", scores: Mapping[str, float] | None = None
    ) -> None:
        """An adapter lies in `folder`, where it must stay until it has been carried over.

        Args:
            run_of: The trial whose run it belongs to; by default its own.
            scores: A candidate's, by split and metric.
        """
        self._append(AdapterLogged(time.time(), trial_id, str(folder.resolve()), run_of, dict(scores or {})))

    def yardsticks_measured(self, yardsticks: Sequence[Yardstick]) -> None:
        """The study's yardsticks are known; the same ones reported twice count once."""
        if yardsticks and tuple(yardsticks) != self._yardsticks:
            self._append(YardsticksMeasured(time.time(), tuple(yardsticks)))

    def front_found(self, trials: Sequence[FrontTrial]) -> None:
        """The study's front is known; the same one reported twice counts once."""
        if trials and tuple(trials) != self._front:
            gone = {trial.trial_id for trial in self._front} - {trial.trial_id for trial in trials}
            self._append(FrontFound(time.time(), tuple(trials), tuple(sorted(gone))))

    def report_written(self, path: Path) -> None:
        """The report of the search lies in a file, which must stay until it has been carried over."""
        self._append(ReportWritten(time.time(), str(path.resolve())))

    def hosts_measured(self, usage: Mapping[str, Mapping[str, float]], since: float) -> None:
        """Hosts are so busy now, by the addresses of their nodes.

        Args:
            since: When the study was created, seconds since 1970.
        """
        now = time.time()
        self._append(HostsMeasured(now, round(now - since), {name: dict(each) for name, each in usage.items()}))

    def search_finished(
        self, state: SearchState, summary: Mapping[str, Scalar] | None = None, *, at: float | None = None
    ) -> None:
        """The search ends, now or at `at`: numbers of `summary` become metrics of the parent run, the rest tags."""
        self._append(SearchFinished(time.time() if at is None else at, state, dict(summary or {})))

    # ---- how it stands -----------------------------------------------------------------------------------------------
    @property
    def trouble(self) -> str | None:
        """Why events wait, while the store is away; None when they do not."""
        return self._trouble

    @property
    def waiting(self) -> bool:
        """Whether events have yet to reach the store."""
        return self._spool.offset < self._spool.size

    @property
    def search_state(self) -> SearchState | None:
        """How the search was said to have ended; None while it was not."""
        return self._search_state

    @property
    def has_report(self) -> bool:
        """Whether a report was written since the search last started."""
        return self._has_report

    def run_id(self, trial_id: str) -> str | None:
        """Return the run of a trial once it has been created; flush first to be sure."""
        return self._runs.known(trial_id)

    def model_id(self, trial_id: str) -> str | None:
        """Return the logged model of a trial's adapter once it has been carried over."""
        return self._runs.known(trial_id, "model_id")

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until every event so far is in the store; False when it is not after `timeout` seconds."""
        with self._changed:
            target = self._spool.size
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._spool.offset >= target, timeout)

    def drain(self, away_after_s: float = 10.0) -> str:
        """Wait while events go over, however many; return why some wait when none has gone over for that long.

        A store that says nothing, neither takes an event nor fails, is given longer: it may be slow. With 0 nothing is
        waited for.
        """
        self._hurried = True
        offset, moved_at = self._spool.offset, time.monotonic()
        while not self.flush(min(_FIRST_PAUSE_S, away_after_s)):
            if self._spool.offset > offset:
                offset, moved_at = self._spool.offset, time.monotonic()
            patience_s = max(away_after_s, _SILENT_S) if away_after_s and self._trouble is None else away_after_s
            if time.monotonic() - moved_at >= patience_s:
                return self._trouble or f"MLflow has said nothing for {patience_s:g} s"
        return ""

    def close(self, timeout: float = 10.0) -> bool:
        """Carry what waits, stop the writer and let the folder go; False when events stay spooled for the next tracker.

        Args:
            timeout: How long the store may be away.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        done = not self.waiting if self._stopped else not self.drain(timeout)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._writer.join(timeout=1.0)
        self._spool.close()
        if not done:
            _logger.warning("MLflow at %s is away; what it lacks waits in %s", redact(self._uri), self._spool.path)
        return done

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the writer --------------------------------------------------------------------------------------------------
    def _append(self, event: Event) -> None:
        with self._changed:
            self._spool.append(event)
            self._note(event)
            self._changed.notify_all()

    def _note(self, event: Event) -> None:
        """Remember what decides whether a later event is news."""
        match event:
            case TrialStarted():
                self._trials[event.trial_id].ended = None
            case TrialReported():
                self._trials[event.report.trial_id].steps.add(event.report.step)
            case TrialFinished():
                self._trials[event.trial_id].ended = event.state
            case AdapterLogged():
                self._trials.setdefault(event.trial_id, _TrialStatus())
            case YardsticksMeasured():
                self._yardsticks = event.yardsticks
            case FrontFound():
                self._front = event.trials
            case SearchStarted():
                self._search_state, self._has_report = None, False
                self._facts = event.facts or self._facts
            case ReportWritten():
                self._has_report = True
            case SearchFinished():
                self._search_state = event.state

    def _write(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._await_events():
            entries = self._spool.read(self._spool.offset, _LAST_BATCH if self._hurried else _BATCH)
            try:
                self._apply(entries)
                self._commit(entries[-1].end)
                pause_s = _FIRST_PAUSE_S
            except (AwayError, HomeError) as error:
                self._pause(redact(str(error)), pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _apply(self, entries: Sequence[Entry]) -> None:
        events = [entry.event for entry in entries if entry.event is not None]
        try:
            self._recorder.apply(events)
        except RefusedError:
            for event in events:  # one by one, to set aside only what is refused
                self._apply_one(event)

    def _apply_one(self, event: Event) -> None:
        try:
            self._recorder.apply([event])
        except RefusedError as error:
            with disk_faults(self._refused_path), self._refused_path.open("ab") as file:
                file.write(to_line(event))
            _logger.warning("MLflow refuses an event, set aside in %s: %s", self._refused_path, redact(str(error)))

    def _await_events(self) -> bool:
        """Wait for events to apply; False when the tracker has stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self.waiting)
            return not self._stopped

    def _commit(self, offset: int) -> None:
        with self._changed:
            if self._stopped:  # the folder may have a new owner; repeating these events is harmless
                return
            self._spool.commit(offset)
            if self._trouble is not None:
                _logger.warning("MLflow at %s answers again", redact(self._uri))
            self._trouble = None
            self._changed.notify_all()

    def _pause(self, problem: str, seconds: float) -> None:
        if self._trouble is None:
            _logger.warning("MLflow is away, events wait in %s: %s", self._spool.path, problem)
        with self._changed:
            self._trouble = problem
            if self._closing:  # someone waits, for a short time only
                self._changed.wait_for(lambda: self._stopped, _FIRST_PAUSE_S)
            else:
                self._changed.wait_for(lambda: self._closing, seconds)
