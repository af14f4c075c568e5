"""The tracker: one thread carries a study's log to MLflow, at its own pace."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraxs_search.errors import HomeError, LoraxsError, StudyError
from loraxs_search.home import disk_faults
from loraxs_search.log import events as log_events
from loraxs_search.log.event_log import to_line
from loraxs_search.log.events import LoggedEvent
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.mlflow_uri import redact
from loraxs_search.records.search import CheckpointSelection, StudyDescription
from loraxs_search.records.trial import Hyperparameters, TrialReport, TrialState
from loraxs_search.tracking._runs import SEARCH, StudyRuns
from loraxs_search.tracking.followed import Batch, FollowedLog
from loraxs_search.tracking.run_texts import dataset_input, run_name

STATE = "loraxs.state"
REASON = "loraxs.reason"
MODEL_ID = "loraxs.model_id"
LINEAGE = "loraxs.lineage"  # study and trial whose params a trial was added with
_NOT_IN_A_NAME = re.compile(r"[^\w.\- ]")  # of a metric; MLflow takes colons on some systems only
_STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "FINISHED", TrialState.FAIL: "FAILED"}
_REFUSALS = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")


class RefusedError(Exception):
    """The store answers, and will not take these events however often they are sent.

    Args:
        by_database: Whether its database refused a write: of two searches that insert one row at once, it refuses one,
            and takes it as a change of what then stands there.
    """

    def __init__(self, message: str, *, by_database: bool = False) -> None:
        super().__init__(message)
        self.by_database = by_database


class AwayError(Exception):
    """The store does not answer, or not now: the same events may be taken later."""


@dataclass
class _Trial:
    """What of a trial later events are recorded by."""

    started_at: float | None = None
    reports: dict[int, TrialReport] = field(default_factory=dict)  # by step, in their order


class Recorder:
    """Applies events of one study to its runs. One thread calls it; of a server, several trials are written at once.

    Args:
        folder: The study's, which adapters and the report lie below.
        selection: Which step of a trial becomes its adapter; None if that is the last one of each.
    """

    def __init__(self, runs: StudyRuns, folder: Path, selection: CheckpointSelection | None = None) -> None:
        self._runs, self._folder, self._selection = runs, folder, selection
        self._facts: StudyDescription | None = None
        self._trials: defaultdict[str, _Trial] = defaultdict(_Trial)
        self._handlers: dict[type, Callable[[Any], None]] = {
            log_events.DriverStarted: self._search_started,
            log_events.TrialStarted: self._trial_started,
            log_events.TrialReported: self._trial_reported,
            log_events.TrialEnded: self._trial_ended,
            log_events.TrialContinued: self._trial_continued,
            log_events.AdapterWritten: self._adapter_written,
            log_events.BaselinesMeasured: self._baselines_measured,
            log_events.ReportWritten: self._report_written,
            log_events.HostsMeasured: self._hosts_measured,
            log_events.SearchFinished: self._search_finished,
        }

    @property
    def trials(self) -> Collection[str]:
        """The trials that events have named so far."""
        return self._trials.keys()

    def note(self, event: log_events.LoggedEvent) -> None:
        """Remember what later events are recorded by; the same event twice changes nothing."""
        match event:
            case log_events.DriverStarted(run=run) if run is not None:
                self._facts = run.facts or self._facts
            case log_events.TrialStarted():
                trial = self._trials[event.trial_id]
                trial.started_at = event.at if trial.started_at is None else trial.started_at
            case log_events.TrialReported(report=report):
                self._trials[report.trial_id].reports.setdefault(report.step, report)

    def apply(self, events: Iterable[log_events.LoggedEvent]) -> None:
        """Record `events`, one after the other; most are of no concern to MLflow.

        Raises:
            RefusedError: the store answers and refuses one of them; those before it may be recorded.
            AwayError: the store is away; none or some of them are recorded.
        """
        mine = [event for event in events if type(event) in self._handlers]
        for event in mine:
            self.note(event)
        try:
            if mine:
                self._runs.connect()
            for is_of_trials, stretch in itertools.groupby(mine, lambda event: _trial_of(event) != SEARCH):
                if is_of_trials:
                    self._write_trials(list(stretch))
                else:
                    self._handle(stretch)
                    self._runs.send()
        except Exception as error:
            self._runs.forget()
            raise self._classified(error) from error

    def _classified(self, error: Exception) -> Exception:
        """Return the error to raise; whoever deleted the experiment may restore it, and its runs with it."""
        from mlflow.exceptions import MlflowException

        classified = _classify(error)
        if isinstance(classified, RefusedError):
            try:
                self._runs.check_active()
            except (MlflowException, LoraxsError) as found:
                return _classify(found)
        return classified

    def _write_trials(self, events: Sequence[log_events.LoggedEvent]) -> None:
        """Write the run of each trial in the order of its events, and several runs at once.

        A server answers each call some milliseconds later, and a search of 10,000 trials makes 140,000 calls. This
        thread is one of the writers, so all is written where no other can be started. The others keep no process alive.
        """
        by_trial = defaultdict[str, list[log_events.LoggedEvent]](list)
        for event in events:
            by_trial[_trial_of(event)].append(event)
        self._runs.run(SEARCH, events[0].at)  # the parent of all
        waiting, errors, helpers = deque(by_trial.items()), list[Exception](), list[threading.Thread]()

        def write() -> None:
            with contextlib.suppress(IndexError):  # nothing waits
                while not errors:
                    trial_id, own = waiting.popleft()
                    try:
                        self._handle(own)
                        self._runs.send(trial_id)
                    except Exception as error:  # noqa: BLE001  # raised below, in the thread that asked for it
                        errors.append(error)

        with contextlib.suppress(RuntimeError):  # the system has no thread left
            for _ in range(min(self._runs.at_once, len(by_trial)) - 1):
                helper = threading.Thread(target=write, name="mlflow-writer", daemon=True)
                helper.start()
                helpers.append(helper)
        write()
        for helper in helpers:
            helper.join()
        if errors:
            raise errors[0]

    def _handle(self, events: Iterable[log_events.LoggedEvent]) -> None:
        for event in events:
            self._handlers[type(event)](event)

    def _search_started(self, event: log_events.DriverStarted) -> None:
        if (run := event.run) is None:
            return
        run_id = self._runs.run(SEARCH, event.at)
        plan = {f"search.{name}": value for name, value in vars(run.plan).items()}
        plan |= {f"search.{name}": value for name, value in plan.pop("search.params").items()}
        plan = {key: value for key, value in plan.items() if value != ""}
        # MLflow never changes a param: a search that continues keeps its first ones, and says what is new in tags.
        known = self._runs.client.get_run(run_id).data.params
        params = {key: value for key, value in (plan | dict(run.params)).items() if key not in known}
        self._runs.add(run_id, params=params, tags=run.tags)
        self._runs.client.log_text(run_id, run.space_yaml, "space.yaml")
        self._runs.reopen(run_id)
        if self._facts is not None:
            self._runs.describe(run_id, self._facts, event.at)
            self._runs.client.log_inputs(run_id, datasets=[dataset_input(self._facts)])

    def _run(self, trial_id: str, at: float, name: str = "") -> str:
        """Return the run of a trial, which began when the trial did."""
        started_at = self._trials[trial_id].started_at
        return self._runs.run(trial_id, at if started_at is None else started_at, name)

    def _trial_started(self, event: log_events.TrialStarted) -> None:
        run_id = self._run(event.trial_id, event.at, run_name(event.trial_id, event.params))
        tags = {LINEAGE: str(event.lineage)} if event.lineage else {}
        self._runs.add(run_id, params=_resolved(event.hyperparameters) | dict(event.params), tags=tags)
        if self._facts is not None:
            self._runs.client.log_inputs(run_id, datasets=[dataset_input(self._facts)])
        self._runs.reopen(run_id)

    def _trial_reported(self, event: log_events.TrialReported) -> None:
        report = event.report
        run_id = self._run(report.trial_id, event.at)
        costs = {"train_loss": report.train_loss, "device_s": report.device_s, "num_tokens": report.num_tokens}
        if report.retrained_steps:
            costs["retrained_steps"] = report.retrained_steps
        self._runs.add(run_id, metrics=costs | dict(report.metrics), at=event.at, step=report.step)
        if report.step == next(iter(self._trials[report.trial_id].reports)):
            size = {name: value for name, value in vars(report.size).items() if value is not None}
            self._runs.add(run_id, metrics=size, at=event.at)

    def _trial_ended(self, event: log_events.TrialEnded) -> None:
        run_id, trial = self._run(event.trial_id, event.at), self._trials[event.trial_id]
        reports = tuple(trial.reports.values())
        metrics: dict[str, float] = {
            "wall_s": event.worked_s,
            "total_device_s": reports[-1].device_s if reports else 0.0,
        }
        if self._selection is not None and self._selection.checkpoint == "best" and event.state is TrialState.COMPLETE:
            metrics["kept_step"] = self._selection.select(reports).step
        self._runs.add(run_id, metrics=metrics, at=event.at)
        self._runs.end(run_id, _STATUS[event.state], event.at, {STATE: event.state.value, REASON: event.reason})

    def _trial_continued(self, event: log_events.TrialContinued) -> None:
        self._runs.reopen(self._run(event.trial_id, event.at))

    def _adapter_written(self, event: log_events.AdapterWritten) -> None:
        folder = self._folder / event.folder
        if not folder.is_dir():
            raise RefusedError(f"the adapter folder {folder} is gone")
        run_of = event.run_of or event.trial_id
        run_id = self._run(run_of, event.at)
        model_id = self._runs.log_model(event.trial_id, run_id, folder, _content_digest(folder))
        own = run_of == event.trial_id
        scores = {f"{'candidate' if own else 'refit'}.{name}": value for name, value in event.scores.items()}
        self._runs.add(run_id, metrics=scores, tags={MODEL_ID if own else f"{MODEL_ID}.refit": model_id}, at=event.at)

    def _baselines_measured(self, event: log_events.BaselinesMeasured) -> None:
        run_id = self._runs.run(SEARCH, event.at)
        metrics, tags = dict[str, float](), dict[str, str]()
        for baseline in event.baselines:
            name = f"baseline.{baseline.name}"
            metrics |= {f"{name}.validation.{key}": value for key, value in baseline.validation_metrics.items()}
            metrics |= {f"{name}.test.{key}": value for key, value in baseline.test_metrics.items()}
            tags |= {f"loraxs.{name}.failed": baseline.failed} if baseline.failed else {}
            tags |= {f"loraxs.{name}.answer": str(baseline.answer)} if baseline.answer is not None else {}
        self._runs.add(run_id, metrics=metrics, tags=tags, at=event.at)

    def _report_written(self, event: log_events.ReportWritten) -> None:
        path = self._folder / event.path
        if not path.is_file():
            raise RefusedError(f"the report {path} is gone")
        self._runs.client.log_artifact(self._runs.run(SEARCH, event.at), str(path))

    def _hosts_measured(self, event: log_events.HostsMeasured) -> None:
        """MLflow's page of a run draws what is named so beside its metrics, under `System metrics`."""
        readings = ((address, name, value) for address, each in event.usage.items() for name, value in each.items())
        metrics = {f"system/{_NOT_IN_A_NAME.sub('-', address)}/{name}": value for address, name, value in readings}
        self._runs.add(self._runs.run(SEARCH, event.at), metrics=metrics, at=event.at, step=event.step)

    def _search_finished(self, event: log_events.SearchFinished) -> None:
        run_id = self._runs.run(SEARCH, event.at)
        numbers = {k: v for k, v in event.summary.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        words = {f"loraxs.{key}": str(value) for key, value in event.summary.items() if key not in numbers}
        self._runs.add(run_id, metrics=numbers, at=event.at)
        self._runs.end(run_id, event.state, event.at, words | {STATE: event.state})


def _trial_of(event: log_events.LoggedEvent) -> str:
    """Return the trial in whose run an event is written; SEARCH for what is not of one trial."""
    match event:
        case log_events.AdapterWritten():
            return event.run_of or event.trial_id
        case log_events.TrialReported():
            return event.report.trial_id
        case log_events.TrialStarted() | log_events.TrialEnded() | log_events.TrialContinued():
            return event.trial_id
    return SEARCH


def _resolved(hyperparameters: Hyperparameters | None) -> dict[str, Any]:
    if hyperparameters is None:
        return {}
    values: dict[str, Any] = dict(vars(hyperparameters))
    # The modules' names are in the adapter's manifest; here they would pass MLflow's limit on a param.
    values["num_target_modules"] = len(values.pop("target_modules"))
    if hyperparameters.method != LoraXS.name:
        values = {name: value for name, value in values.items() if name not in (*LoraXS.parameters, "factor_rank")}
    return {**values, **values.pop("method_params")}


def _classify(error: Exception) -> Exception:
    if isinstance(error, RefusedError | AwayError):
        return error
    code, message = getattr(error, "error_code", None), f"{type(error).__name__}: {error}"
    if isinstance(error, LoraxsError | OSError) or code not in (None, *_REFUSALS):
        return AwayError(str(error))
    return RefusedError(message, by_database=code == "BAD_REQUEST")


def _content_digest(folder: Path) -> str:
    """Return the sha256 of a sealed folder's manifest, which names every other file's; of all files when unsealed."""
    manifest = folder / "manifest.json"
    files = [manifest] if manifest.exists() else sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


_logger = logging.getLogger(__name__)
_BATCH = 500  # lines applied between two commits of the offset
_LAST_BATCH = 50  # once a user waits for the end, to see that it comes nearer
_TRIES = 4  # of what a database refused: an event may insert several rows that another search inserts too
_LOOK_EVERY_S = 0.2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_SILENT_S = 60.0


class Tracker:
    """Follows the log of one study, whose lock is held, off the search's control loop.

    It never holds up who appends to the log, and fails nobody because MLflow is away: the offset stays where it is, and
    the rest is carried over when MLflow answers again, by this process or the next one that opens the folder. Repeating
    an event changes nothing: the runs of a study are found again by their tags, and a point that is there is dropped.

    Args:
        study: The study's name, which the parent run carries.
        study_dir: Its folder.
        uri: The store, as `resolve_uri` gives it.
        experiment: MLflow experiment the runs appear in, created when missing.
        selection: Which step of a trial becomes its adapter; None if that is the last one of each.
        is_ours: Whether the study is this driver's for sure; None if no other machine can continue with it.
    Raises:
        StudyError: the log is damaged.
        HomeError: the folder cannot be written.
    """

    def __init__(
        self,
        study: str,
        study_dir: Path,
        uri: str,
        experiment: str,
        selection: CheckpointSelection | None = None,
        *,
        is_ours: Callable[[], bool] | None = None,
    ) -> None:
        self._followed = FollowedLog(study, study_dir)
        self._uri = uri
        self._refused_path = study_dir / "tracking.refused.jsonl"
        self._runs = StudyRuns(
            uri,
            study=study,
            study_id=self._followed.study_id,
            experiment=experiment,
            map_path=study_dir / "tracking.runs.jsonl",
            is_ours=is_ours,
        )
        self._recorder = Recorder(self._runs, study_dir, selection)
        for event in self._followed.history():
            self._recorder.note(event)
        self._runs.doubt(self._recorder.trials)
        self.trouble: str | None = None  # why events wait, while the store is away
        self._closing = self._stopped = False
        self._hurried = False  # a user waits, and small batches show that events go over
        self._changed = threading.Condition()
        self._writer = threading.Thread(target=self._write, name="mlflow-writer", daemon=True)
        self._writer.start()

    # ---- how it stands -----------------------------------------------------------------------------------------------
    @property
    def waiting(self) -> bool:
        """Whether events have yet to reach the store."""
        return self._followed.applied < self._followed.end

    def run_id(self, trial_id: str) -> str | None:
        """Return the run of a trial once it has been created; flush first to be sure."""
        return self._runs.known(trial_id)

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until every event so far is in the store; False when it is not after `timeout` seconds."""
        with self._changed:
            target = self._followed.end
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._followed.applied >= target, timeout)

    def drain(self, away_after_s: float = 10.0) -> str:
        """Wait while events go over, however many; return why some wait when none has gone over for that long.

        A store that says nothing, neither takes an event nor fails, is given longer: it may be slow. With 0 nothing is
        waited for.
        """
        self._hurried = True
        offset, moved_at = self._followed.applied, time.monotonic()
        while not self.flush(min(_FIRST_PAUSE_S, away_after_s)):
            if self._followed.applied > offset:
                offset, moved_at = self._followed.applied, time.monotonic()
            patience_s = max(away_after_s, _SILENT_S) if away_after_s and self.trouble is None else away_after_s
            if time.monotonic() - moved_at >= patience_s:
                return self.trouble or f"MLflow has said nothing for {patience_s:g} s"
        return ""

    def close(self, timeout: float = 10.0) -> bool:
        """Carry what waits and stop the writer; False when events are left to the next tracker.

        Args:
            timeout: How long the store may be away.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        done = not self.waiting if self._stopped else not self.drain(timeout)
        self.abandon()
        if not done:
            _logger.warning("MLflow at %s is away; what it lacks waits in %s", redact(self._uri), self._followed.path)
        return done

    def abandon(self) -> None:
        """Stop the writer, whatever waits: the log is another driver's by now."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._writer.join(timeout=1.0)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the writer --------------------------------------------------------------------------------------------------
    def _write(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._await_events():
            try:
                batch = self._followed.read(_LAST_BATCH if self._hurried else _BATCH)
                self._apply(batch.events)
                self._commit(batch)
                pause_s = _FIRST_PAUSE_S
            except (AwayError, HomeError, StudyError) as error:
                self._pause(redact(str(error)), pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _apply(self, events: Sequence[LoggedEvent], tries: int = _TRIES) -> None:
        try:
            self._recorder.apply(events)
        except RefusedError as error:
            if error.by_database and tries > 1:
                self._apply(events, tries - 1)
                return
            if len(events) > 1:  # one by one, to set aside only what is refused
                for event in events:
                    self._apply([event])
                return
            with disk_faults(self._refused_path), self._refused_path.open("ab") as file:
                file.writelines(map(to_line, events))
            _logger.warning("MLflow refuses an event, set aside in %s: %s", self._refused_path, redact(str(error)))

    def _await_events(self) -> bool:
        """Wait for events to apply; False when the tracker has stopped."""
        while not self.waiting:
            with self._changed:
                if self._stopped or self._changed.wait_for(lambda: self._stopped, _LOOK_EVERY_S):
                    return False
        return not self._stopped

    def _commit(self, batch: Batch) -> None:
        with self._changed:
            if self._stopped:  # the folder may have a new owner; repeating these events is harmless
                return
            self._followed.commit(batch)
            if self.trouble is not None:
                _logger.warning("MLflow at %s answers again", redact(self._uri))
            self.trouble = None
            self._changed.notify_all()

    def _pause(self, problem: str, seconds: float) -> None:
        if self.trouble is None:
            _logger.warning("MLflow is away, events wait in %s: %s", self._followed.path, problem)
        with self._changed:
            self.trouble = problem
            if self._closing:  # someone waits, for a short time only
                self._changed.wait_for(lambda: self._stopped, _FIRST_PAUSE_S)
            else:
                self._changed.wait_for(lambda: self._closing, seconds)
