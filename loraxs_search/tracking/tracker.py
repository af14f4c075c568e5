"""One class follows a study's log into MLflow, on its own thread and at its own pace."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import logging
import math
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import LoraxsError, StudyError
from loraxs_search.home import ensure_dir, write_atomic
from loraxs_search.log import events as log_events
from loraxs_search.log.study_log import JOURNAL, lines_from, read_events
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.mlflow_uri import artifact_root, check_server, ensure_experiment, redact
from loraxs_search.records.search import CheckpointSelection, SearchPlan
from loraxs_search.records.trial import TrialReport, TrialState
from loraxs_search.tracking.store import KIND, OFFSET, STUDY, STUDY_ID, connect, ensure_store, read_offset

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TRIAL_ID = "trial_id"
_DIGEST = "loraxs.digest"
_STATE, _REASON = "loraxs.state", "loraxs.reason"
_MODEL_ID = "loraxs.model_id"
_LINEAGE = "loraxs.lineage"  # study and trial whose params a trial was added with
_SEARCH = ""  # the search's own run has no trial id
_STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "FINISHED", TrialState.FAIL: "FAILED"}
_REFUSED_BY_DATABASE = "BAD_REQUEST"  # of two searches that insert one row at once, it refuses one
_REFUSALS = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", _REFUSED_BY_DATABASE, "RESOURCE_DOES_NOT_EXIST")
_TRIES = 4  # of what a database refused: an event may insert several rows that another search inserts too
_AT_ONCE = 4  # runs that are written together: as many as an MLflow server has workers by default
_MAX_POINTS, _MAX_NAMES = 800, 100  # log_batch takes 1000 entities, at most 100 of them params and 100 tags
_LINES = 500  # applied between two commits of the offset
_LAST_LINES = 50  # once a user waits for the end, to see that it comes nearer
_LOOK_EVERY_S = 0.2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_SILENT_S = 60.0
_MAX_NAME, _MAX_WORD = 48, 24
_FIRST = ("method", "rank", "target_modules", "learning_rate")  # in this order; the others follow in the study's own
_SHORT = {"rank": "r", "learning_rate": "lr ", "head_learning_rate": "head lr ", "batch_size": "batch "}
_BARE = ("method", "target_modules")  # their values say what they are
_logger = logging.getLogger(__name__)


class Tracker:
    """Follows the log of one study, whose lock is held, off the search's control loop.

    It never holds up who appends to the log, and fails nobody because MLflow is away: the offset stays where it is, and
    the rest is carried over when MLflow answers again, by this process or the next one that opens the folder. The
    offset may lag behind what was applied, never run ahead of it. Repeating an event changes nothing: the runs of a
    study are found again by their tags, and a point that is there is dropped.

    Args:
        study: The study's name, which the parent run carries.
        study_dir: Its folder.
        uri: The store, as `resolve_uri` gives it.
        experiment: MLflow experiment the runs appear in, created when missing.
        selection: Which step of a trial becomes its adapter; None if that is the last one of each.
        study_id: Its id, which tells its runs from those of another study of its name.
        is_ours: Whether the study is this driver's for sure; None if no other machine can continue with it. Where one
            can, from a copy of the log, a run may be that of a trial which was lost with another machine's log, and
            whose number a new one has.
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
        study_id: str,
        is_ours: Callable[[], bool] | None = None,
    ) -> None:
        self._study, self._folder, self._uri, self._experiment = study, ensure_dir(study_dir), uri, experiment
        self._selection, self._is_ours = selection, is_ours
        self._log_path = study_dir / JOURNAL
        self._identity = {STUDY: study, STUDY_ID: study_id}
        self._applied = read_offset(study_dir)

        # What earlier events say that later ones are recorded by.
        self._started_at: dict[str, float] = {}
        self._reports: defaultdict[str, dict[int, TrialReport]] = defaultdict(dict)  # by step, in their order
        for event, _ in read_events(self._log_path, study):
            self._note(event)

        self._runs: dict[str, str] = {}  # those that are known, by trial
        self._doubtful = {_SEARCH, *self._started_at}  # who may have a run that is not known
        self._running = set[str]()

        self._client: MlflowClient  # once it is connected, and the experiment's id known
        self._experiment_id = ""
        self.trouble: str | None = None  # why events wait, while the store is away
        self._closing, self._stopped = False, threading.Event()
        self._hurried = False  # a user waits, and small batches show that events go over
        self._changed = threading.Condition()
        self._writer = threading.Thread(target=self._follow, name="mlflow-writer", daemon=True)
        self._writer.start()

    # ---- how it stands -----------------------------------------------------------------------------------------------
    @property
    def waiting(self) -> bool:
        """Whether events have yet to reach the store."""
        return any(True for _ in lines_from(self._log_path, self._applied))

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until every event so far is in the store; False when it is not after `timeout` seconds."""
        with self._changed:
            target = max((end for _, end in lines_from(self._log_path, self._applied)), default=self._applied)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._applied >= target, timeout)

    def drain(self, away_after_s: float = 10.0) -> str:
        """Wait while events go over, however many; return why some wait when none has gone over for that long.

        A store that says nothing, neither takes an event nor fails, is given longer: it may be slow. With 0 nothing is
        waited for.
        """
        self._hurried = True
        offset, moved_at = self._applied, time.monotonic()
        while not self.flush(min(_FIRST_PAUSE_S, away_after_s)):
            if self._applied > offset:
                offset, moved_at = self._applied, time.monotonic()
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
        done = not self.waiting if self._stopped.is_set() else not self.drain(timeout)
        self.abandon()
        if not done:
            _logger.warning("MLflow at %s is away; what it lacks waits in %s", self._uri, self._log_path)
        return done

    def abandon(self) -> None:
        """Stop the writer, whatever waits: the log is another driver's by now."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()
        self._writer.join(timeout=1.0)

    # ---- following the log -------------------------------------------------------------------------------------------
    def _follow(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopped.is_set():
            if not self.waiting:
                with self._changed:
                    self._changed.wait_for(self._stopped.is_set, _LOOK_EVERY_S)
                continue
            try:
                batch = read_events(self._log_path, self._study, self._applied)
                events, ends = zip(*islice(batch, _LAST_LINES if self._hurried else _LINES), strict=True)
                self._apply([event for event in events if event is not None and _run_of(event) is not None])
                with self._changed:
                    if self._stopped.is_set():  # the folder may have a new owner; repeating these events is harmless
                        return
                    write_atomic(self._folder / OFFSET, str(ends[-1]))
                    self._applied, pause_s = ends[-1], _FIRST_PAUSE_S
                    if self.trouble is not None:
                        _logger.warning("MLflow at %s answers again", self._uri)
                    self.trouble = None
                    self._changed.notify_all()
            except Exception as error:  # noqa: BLE001  # the store is away, or the log cannot be read: events wait
                problem = redact(str(error))
                if self.trouble is None:
                    _logger.warning("MLflow is away, events wait in %s: %s", self._log_path, problem)
                with self._changed:
                    self.trouble = problem
                    if self._closing:  # someone waits, for a short time only
                        self._changed.wait_for(self._stopped.is_set, _FIRST_PAUSE_S)
                    else:
                        self._changed.wait_for(lambda: self._closing, pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _apply(self, events: Sequence[log_events.LoggedEvent], tries: int = _TRIES) -> None:
        """Record events, one after the other; leave out what the store will not take, however often it is sent.

        Raises:
            Exception: the store is away; none or some of the events are recorded.
        """
        try:
            self._record(events)
        except Exception as error:
            code = getattr(error, "error_code", None)
            is_away = isinstance(error, LoraxsError | OSError) or code not in (None, *_REFUSALS)
            if not is_away and self._experiment_id:  # who deleted the experiment may restore it and its runs
                ensure_experiment(self._client, self._uri, self._experiment)
            if is_away:
                raise
            if code == _REFUSED_BY_DATABASE and tries > 1:
                self._apply(events, tries - 1)
            elif len(events) > 1:  # one by one, to leave out only what is refused
                for event in events:
                    self._apply([event])
            else:
                problem = redact(f"{type(error).__name__}: {error}")
                _logger.warning("MLflow refuses an event, which it lacks from now on: %s", problem)

    def _note(self, event: log_events.LoggedEvent | None) -> None:
        """Remember what later events are recorded by; the same event twice changes nothing."""
        match event:
            case log_events.TrialStarted():
                self._started_at.setdefault(event.trial_id, event.at)
            case log_events.TrialReported(report=report):
                self._reports[report.trial_id].setdefault(report.step, report)

    def _record(self, events: Sequence[log_events.LoggedEvent]) -> None:
        """Write the search's run, then those of trials, each in the order of its events, and several at once.

        A server answers each call some milliseconds later, and a search of 10,000 trials makes 140,000 calls. This
        thread is one of the writers, so all is written where no other can be started. The others keep no process alive.
        """
        by_run = defaultdict[str, list[log_events.LoggedEvent]](list)
        for event in events:
            self._note(event)
            by_run[_run_of(event) or _SEARCH].append(event)
        if not events:
            return
        if not self._experiment_id:
            ensure_store(self._uri)
            self._client = connect(self._uri)
            self._experiment_id = ensure_experiment(self._client, self._uri, self._experiment)
        elif artifact_root(self._uri) is None:
            check_server(self._uri)  # in seconds; a call to a dead server may hang for much longer
        self._run(_SEARCH, events[0].at)  # the parent of all
        if own := by_run.pop(_SEARCH, None):
            self._write_search(own)
        waiting, errors, helpers = deque(by_run.items()), list[Exception](), list[threading.Thread]()

        def write() -> None:
            with contextlib.suppress(IndexError):  # nothing waits
                while not errors:
                    trial_id, own = waiting.popleft()
                    try:
                        self._write_trial(trial_id, own)
                    except Exception as error:  # noqa: BLE001  # raised below, in the thread that asked for it
                        errors.append(error)

        # An embedded store takes one write after the other.
        at_once = 1 if artifact_root(self._uri) is not None else min(_AT_ONCE, len(waiting))
        with contextlib.suppress(RuntimeError):  # the system has no thread left
            for _ in range(at_once - 1):
                helper = threading.Thread(target=write, name="mlflow-writer", daemon=True)
                helper.start()
                helpers.append(helper)
        write()
        for helper in helpers:
            helper.join()
        if errors:
            raise errors[0]

    def _write_search(self, events: Sequence[log_events.LoggedEvent]) -> None:
        """Write what happened to the search into its own run."""
        client, run_id = self._client, self._run(_SEARCH, events[0].at)
        batch = _Batch(client, run_id)
        for event in events:
            match event:
                case log_events.DriverStarted(plan=SearchPlan()):
                    plan = {f"search.{name}": value for name, value in vars(event.plan).items()}
                    plan |= {f"search.{name}": value for name, value in plan.pop("search.params").items()}
                    plan = {key: value for key, value in plan.items() if value != ""}
                    # MLflow never changes a param: a search that continues keeps its first ones; tags say what is new.
                    known = client.get_run(run_id).data.params
                    params = {key: value for key, value in (plan | dict(event.params)).items() if key not in known}
                    batch.add(params=params, tags=event.tags)
                    client.log_text(run_id, event.space_yaml, "space.yaml")
                    self._reopen(run_id)
                case log_events.BaselinesMeasured():
                    for baseline in event.baselines:
                        name = f"baseline.{baseline.name}"
                        scores = {f"{name}.validation.{key}": v for key, v in baseline.validation_metrics.items()}
                        scores |= {f"{name}.test.{key}": value for key, value in baseline.test_metrics.items()}
                        batch.add(scores, event.at)
                        if baseline.failed:
                            batch.add(tags={f"loraxs.{name}.failed": baseline.failed})
                        if baseline.answer is not None:
                            batch.add(tags={f"loraxs.{name}.answer": baseline.answer})
                case log_events.ReportWritten():
                    path = self._folder / event.path
                    if not path.is_file():
                        raise ValueError(f"the report {path} is gone")
                    client.log_artifact(run_id, str(path))
                case log_events.SearchFinished(summary=summary):
                    numbers = {
                        key: value
                        for key, value in summary.items()
                        if isinstance(value, int | float) and not isinstance(value, bool)
                    }
                    words = {f"loraxs.{key}": value for key, value in summary.items() if key not in numbers}
                    batch.add(numbers, event.at, tags=words | {_STATE: event.state})
                    self._end(batch, event.state, event.at)
        batch.send()

    def _write_trial(self, trial_id: str, events: Sequence[log_events.LoggedEvent]) -> None:
        first = events[0]
        name = _run_name(trial_id, first.params) if isinstance(first, log_events.TrialStarted) else trial_id
        run_id = self._run(trial_id, self._started_at.get(trial_id, first.at), name)
        batch, reports = _Batch(self._client, run_id), self._reports[trial_id]
        for event in events:
            match event:
                case log_events.TrialStarted():
                    params: dict[str, Any] = {}
                    if (resolved := event.hyperparameters) is not None:
                        params = dict(vars(resolved))
                        # Their names are in the adapter's manifest; here they would pass MLflow's limit on a param.
                        params["num_target_modules"] = len(params.pop("target_modules"))
                        for other in () if resolved.method == LoraXS.name else (*LoraXS.parameters, "factor_rank"):
                            params.pop(other, None)
                        params |= params.pop("method_params")
                    batch.add(params=params | dict(event.params))
                    batch.add(tags={_LINEAGE: f"{self._study}/{event.lineage}"} if event.lineage else {})
                    self._reopen(run_id)
                case log_events.TrialReported(report=report):
                    costs = {name: getattr(report, name) for name in ("train_loss", "device_s", "num_tokens")}
                    batch.add(costs | dict(report.metrics), event.at, report.step)
                    if report.step == next(iter(reports)):
                        size = {name: value for name, value in vars(report.size).items() if value is not None}
                        batch.add(size, event.at)
                case log_events.TrialEnded():
                    known = tuple(reports.values())
                    batch.add({"wall_s": event.worked_s}, event.at)
                    batch.add({"total_device_s": known[-1].device_s if known else 0.0}, event.at)
                    rule = self._selection
                    if rule is not None and rule.checkpoint == "best" and event.state is TrialState.COMPLETE:
                        batch.add({"kept_step": rule.select(known).step}, event.at)
                    batch.add(tags={_STATE: event.state.value, _REASON: event.reason})
                    self._end(batch, _STATUS[event.state], event.at)
                case log_events.TrialContinued():
                    self._reopen(run_id)
                case log_events.AdapterWritten():
                    model_id = self._log_model(event.trial_id, run_id, self._folder / event.folder)
                    kind, tag = (
                        ("candidate", _MODEL_ID) if event.trial_id == trial_id else ("refit", f"{_MODEL_ID}.refit")
                    )
                    scores = {f"{kind}.{name}": value for name, value in event.scores.items()}
                    batch.add(scores, event.at, tags={tag: model_id})
        batch.send()

    # ---- runs: blocking, and every call may be repeated without effect -----------------------------------------------
    def _run(self, trial_id: str, at: float, name: str = "") -> str:
        """Return the run id of a trial, or of the search; the run is created if there is none, under this name.

        Args:
            at: When the trial, or the search, began.
        """
        if known := self._runs.get(trial_id):
            return known
        client, run_id = self._client, None
        own = {KIND: "trial", _TRIAL_ID: trial_id} if trial_id else {KIND: "search"}
        tags = self._identity | own
        if self._is_ours is not None or trial_id in self._doubtful:
            query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items() if key != STUDY)
            for run in client.search_runs([self._experiment_id], query, max_results=10):
                if not trial_id or self._is_ours is None or run.info.start_time == _ms(at):
                    run_id = str(run.info.run_id)
                    break
                if not self._is_ours():
                    raise StudyError(
                        "Runs of another driver must stay as they are, but this one may have been taken over."
                    )
                client.set_terminated(run.info.run_id, "KILLED")
                client.set_tag(run.info.run_id, _TRIAL_ID, f"{trial_id}, lost with the log of another machine")
        if run_id is None:
            tags |= {"mlflow.user": getpass.getuser(), "mlflow.source.name": "loraxs-search"}
            if trial_id:
                tags["mlflow.parentRunId"] = self._run(_SEARCH, at)
            self._doubtful.add(trial_id)  # until the answer is here
            name = name or trial_id or self._study
            created = client.create_run(self._experiment_id, start_time=_ms(at), tags=tags, run_name=name)
            run_id = str(created.info.run_id)
            self._running.add(run_id)
        self._runs[trial_id] = run_id
        self._doubtful.discard(trial_id)
        return run_id

    def _reopen(self, run_id: str) -> None:
        """Mark a run that may have ended as running."""
        if run_id not in self._running:
            self._client.update_run(run_id, status="RUNNING")
            self._running.add(run_id)

    def _end(self, batch: _Batch, status: str, at: float) -> None:
        batch.send()
        self._client.set_terminated(batch.run_id, status, _ms(at))
        self._running.discard(batch.run_id)

    def _log_model(self, trial_id: str, run_id: str, folder: Path) -> str:
        """Keep the files of `folder` as a logged model of the run, once per content, and return its id."""
        from mlflow.entities import LoggedModelOutput

        if not folder.is_dir():
            raise ValueError(f"the adapter folder {folder} is gone")
        # A sealed folder's manifest has the digest of every other file.
        sealed = folder / "manifest.json"
        content = hashlib.sha256()
        for path in [sealed] if sealed.exists() else sorted(path for path in folder.rglob("*") if path.is_file()):
            content.update(path.read_bytes())
        client, digest = self._client, content.hexdigest()
        known = client.search_logged_models([self._experiment_id], f"source_run_id = '{run_id}'")
        model = next((model for model in known if model.tags.get(_DIGEST) == digest), None)
        if model is None:
            model = client.create_logged_model(
                self._experiment_id,
                name=re.sub(r"[/:.%\"']", "-", trial_id),  # characters MLflow does not take
                source_run_id=run_id,
                tags=self._identity | {_TRIAL_ID: trial_id, _DIGEST: digest},
                model_type="LORAXS",
            )
        model_id = str(model.model_id)
        if str(model.status) != "READY":
            client.log_model_artifacts(model_id, str(folder))
            client.finalize_logged_model(model_id, "READY")
        # MLflow's table of runs lists what a run names among what it has made.
        outputs = client.get_run(run_id).outputs
        if outputs is None or all(output.model_id != model_id for output in outputs.model_outputs):
            client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        return model_id


class _Batch:
    """Values for one run, sent together."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.run_id, self._client = run_id, client
        self._metrics: list[tuple[str, float, int, int]] = []  # key, value, timestamp ms, step
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}

    def add(
        self,
        metrics: Mapping[str, float] | None = None,
        at: float = 0.0,
        step: int = 0,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        self._metrics += [(key, float(value), _ms(at), step) for key, value in (metrics or {}).items()]
        for key, value in (params or {}).items():
            self._params.setdefault(key, str(value))  # MLflow never changes one
        self._tags |= {key: str(value) for key, value in (tags or {}).items()}

    def send(self) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in self._metrics]
        params = [Param(*item) for item in self._params.items()]
        tags = [RunTag(*item) for item in self._tags.items()]
        while metrics or params or tags:
            # The store drops a point whose run, key, step, time and value it has: sending twice adds nothing.
            first = metrics[:_MAX_POINTS], params[:_MAX_NAMES], tags[:_MAX_NAMES]
            self._client.log_batch(self.run_id, *first, synchronous=True)
            del metrics[:_MAX_POINTS], params[:_MAX_NAMES], tags[:_MAX_NAMES]
        self._metrics, self._params, self._tags = [], {}, {}


_OF_SEARCH = (log_events.BaselinesMeasured, log_events.ReportWritten, log_events.SearchFinished)
_OF_TRIAL = (log_events.TrialStarted, log_events.TrialReported, log_events.TrialEnded, log_events.TrialContinued)


def _run_of(event: log_events.LoggedEvent) -> str | None:
    """Return the trial in whose run an event is written; None for one that is of no concern to MLflow."""
    if isinstance(event, log_events.AdapterWritten):
        return event.run_of or event.trial_id
    if isinstance(event, _OF_TRIAL):
        return event.trial_id
    is_start = isinstance(event, log_events.DriverStarted) and event.plan is not None
    return _SEARCH if is_start or isinstance(event, _OF_SEARCH) else None


def _ms(at: float) -> int:
    return round(at * 1000)


def _run_name(trial_id: str, params: Mapping[str, Any]) -> str:
    """Return a trial's number and its params, as many as fit; an id that is no number stands as it is."""
    parts = [f"#{int(trial_id)}" if re.fullmatch(r"\d+", trial_id) else trial_id]
    for name in (*(name for name in _FIRST if name in params), *(name for name in params if name not in _FIRST)):
        word = str(value := params[name])
        if isinstance(value, float):  # two digits, as people write them: 2e-3, 0.5, 1.7e-2
            word = f"{value:.3g}"
            if value != 0 and math.isfinite(value) and not 0.1 <= abs(value) < 1000:
                digits, _, exponent = f"{value:.1e}".partition("e")
                word = f"{digits.removesuffix('.0')}e{int(exponent)}"
        word = word if len(word) <= _MAX_WORD else f"{word[: _MAX_WORD - 1]}…"
        part = word if name in _BARE else f"{_SHORT.get(name, f'{name} ')}{word}"
        if len(" ".join([*parts, part])) > _MAX_NAME:
            break
        parts.append(part)
    return " ".join(parts)
