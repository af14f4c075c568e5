"""The runs of one study in the MLflow store: found by their tags before any is created, written in batches."""

from __future__ import annotations

import contextlib
import getpass
import json
import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import StudyError
from loraxs_search.log.event_log import AppendLog
from loraxs_search.mlflow_client import ensure_experiment
from loraxs_search.mlflow_uri import artifact_root, check_server
from loraxs_search.records.search import StudyDescription
from loraxs_search.tracking.run_texts import trials_view, view_key, write_note, write_view
from loraxs_search.tracking.store import connect, ensure_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

STUDY = "loraxs.study"
STUDY_ID = "loraxs.study_id"
KIND = "loraxs.kind"
TRIAL_ID = "trial_id"
DIGEST = "loraxs.digest"
_AT_ONCE = 4  # as many as an MLflow server has workers by default
SEARCH = ""  # the search's own run has no trial id
_MAX_POINTS, _MAX_NAMES = 800, 100  # log_batch takes 1000 entities, at most 100 of them params and 100 tags


@dataclass
class _Batch:
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)  # key, value, timestamp ms, step
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class StudyRuns:
    """One parent run and a child per trial. Blocking; every call may be repeated without effect.

    Threads may write runs of different trials at the same time.

    Args:
        is_ours: Whether the study is this driver's for sure; None if no other machine can continue with it. Where
            one can, from a copy of the log, a run may be that of a trial which was lost with another machine's log,
            and whose number a new one has.

    Run ids are remembered in `map_path`. The store is asked for a run only when one may exist that
    the map lacks: its trial is of an earlier process, or creating it failed half-way.
    """

    def __init__(
        self,
        uri: str,
        *,
        study: str,
        study_id: str,
        experiment: str,
        map_path: Path,
        is_ours: Callable[[], bool] | None = None,
    ) -> None:
        self._uri, self._experiment, self._is_ours = uri, experiment, is_ours
        self._doubtful = {SEARCH}
        self._bare = set[str]()  # runs made here that cannot have a model yet
        self._running: set[str] = set()
        self._identity = {STUDY: study, STUDY_ID: study_id}
        self._map = _RunMap(map_path)
        self._batches: dict[str, _Batch] = {}
        self._client: MlflowClient | None = None
        self._experiment_id = ""

    def doubt(self, trials: Collection[str]) -> None:
        """Ask the store whether trials of earlier processes have runs.

        Args:
            trials: All that the log knows.
        """
        self._doubtful.update(trials)
        if self._is_ours is not None:
            self._map.forget_all_but({SEARCH, *trials})  # what was copied after the log may be ahead of it

    @property
    def at_once(self) -> int:
        """How many runs to write at the same time; an embedded store takes one write after the other."""
        return 1 if artifact_root(self._uri) is not None else _AT_ONCE

    @property
    def client(self) -> MlflowClient:
        """The MLflow client; `connect` comes first."""
        assert self._client is not None
        return self._client

    def connect(self) -> None:
        """Make sure that the store answers, in seconds."""
        if self._client is not None:
            if artifact_root(self._uri) is None:
                check_server(self._uri)  # a call to a dead server may hang for much longer
            return
        ensure_store(self._uri)
        client = connect(self._uri)
        self._experiment_id = ensure_experiment(client, self._uri, self._experiment)
        self._client = client

    def check_active(self) -> None:
        """Refuse an experiment that was deleted since `connect`.

        Raises:
            TrackingError: it was.
        """
        if self._client is not None:
            ensure_experiment(self._client, self._uri, self._experiment)

    def known(self, trial_id: str) -> str | None:
        """Return the run id of a trial if this study has one, without asking the server."""
        return self._map.run_id(trial_id)

    def run(self, trial_id: str, at: float, name: str = "") -> str:
        """Return the run id of a trial, or of the search; the run is created if there is none, under this name.

        Args:
            at: When the trial, or the search, began.
        """
        known = self.known(trial_id)
        if known is not None:
            return known
        tags = self._identity | ({KIND: "trial", TRIAL_ID: trial_id} if trial_id else {KIND: "search"})
        existing = self._search(tags, at) if self._is_ours is not None or trial_id in self._doubtful else None
        run_id = existing or self._create(trial_id, at, tags, name)
        self._map.put(trial_id, "run_id", run_id)
        self._doubtful.discard(trial_id)
        return run_id

    def describe(self, run_id: str, facts: StudyDescription, at: float) -> None:
        """Have the experiment say what the task is, and show the trials of this study best first."""
        tags = self.client.get_experiment(self._experiment_id).tags
        write_note(self.client, self._experiment_id, tags, facts)
        metric, direction = facts.task.search_metric, facts.task.search_direction
        view = trials_view(self._identity[STUDY], run_id, metric, direction, facts.parameters, at)
        write_view(self.client, self._experiment_id, tags, view_key(self._identity[STUDY_ID]), view)

    def reopen(self, run_id: str) -> None:
        """Mark a run that may have ended as running."""
        if run_id not in self._running:
            self.client.update_run(run_id, status="RUNNING")
            self._running.add(run_id)

    def log_model(self, trial_id: str, run_id: str, folder: Path, digest: str) -> str:
        """Keep the files of `folder` as a logged model of the run, once per digest, and return its id."""
        is_bare, model = run_id in self._bare, None
        self._bare.discard(run_id)
        if not is_bare:
            known = self.client.search_logged_models([self._experiment_id], f"source_run_id = '{run_id}'")
            model = next((model for model in known if model.tags.get(DIGEST) == digest), None)
        if model is None:
            model = self.client.create_logged_model(
                self._experiment_id,
                name=re.sub(r"[/:.%\"']", "-", trial_id),  # characters MLflow does not take
                source_run_id=run_id,
                tags=self._identity | {TRIAL_ID: trial_id, DIGEST: digest},
                model_type="LORAXS",
            )
        model_id = str(model.model_id)
        if str(model.status) != "READY":
            self.client.log_model_artifacts(model_id, str(folder))
            self.client.finalize_logged_model(model_id, "READY")
        self._show_model(run_id, model_id, is_first=is_bare)
        self._map.put(trial_id, "model_id", model_id)
        return model_id

    def _show_model(self, run_id: str, model_id: str, *, is_first: bool) -> None:
        """Name a logged model among what its run has made, as MLflow's table of runs lists it."""
        from mlflow.entities import LoggedModelOutput

        outputs = None if is_first else self.client.get_run(run_id).outputs
        if outputs is None or all(output.model_id != model_id for output in outputs.model_outputs):
            self.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])

    def add(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        at: float = 0.0,
        step: int = 0,
    ) -> None:
        """Collect values for the run's next batch.

        Raises:
            ValueError: a param was given another value before, which MLflow would not take either.
        """
        batch = self._batches.setdefault(run_id, _Batch())
        batch.metrics += [(key, float(value), _ms(at), step) for key, value in (metrics or {}).items()]
        for key, value in (params or {}).items():
            if batch.params.setdefault(key, str(value)) != str(value):
                raise ValueError(f"param {key} cannot change from {batch.params[key]} to {value}")
        batch.tags |= {key: str(value) for key, value in (tags or {}).items()}

    def end(self, run_id: str, status: str, at: float, tags: Mapping[str, str]) -> None:
        """Send the run's batch and close the run."""
        self.add(run_id, tags=tags)
        self._send(run_id)
        self.client.set_terminated(run_id, status, _ms(at))
        self._running.discard(run_id)

    def send(self, trial_id: str | None = None) -> None:
        """Send what was collected for the run of a trial, or for every run."""
        if trial_id is None:
            for run_id in list(self._batches):
                self._send(run_id)
        elif (known := self.known(trial_id)) is not None:
            self._send(known)

    def forget(self) -> None:
        """Drop what was collected and not sent."""
        self._batches.clear()

    def _send(self, run_id: str) -> None:
        from mlflow.entities import Metric, Param, RunTag

        batch = self._batches.pop(run_id, _Batch())
        metrics = [Metric(*point) for point in batch.metrics]
        params = [Param(*item) for item in batch.params.items()]
        tags = [RunTag(*item) for item in batch.tags.items()]
        while metrics or params or tags:
            # The store drops a point whose run, key, step, time and value it has: sending twice adds nothing.
            first = metrics[:_MAX_POINTS], params[:_MAX_NAMES], tags[:_MAX_NAMES]
            self.client.log_batch(run_id, *first, synchronous=True)
            del metrics[:_MAX_POINTS], params[:_MAX_NAMES], tags[:_MAX_NAMES]

    def _create(self, trial_id: str, at: float, tags: dict[str, str], name: str) -> str:
        extra = {"mlflow.user": getpass.getuser(), "mlflow.source.name": "loraxs-search"}
        if trial_id != SEARCH:
            extra["mlflow.parentRunId"] = self.run(SEARCH, at)
        name = name or trial_id or self._identity[STUDY]
        self._doubtful.add(trial_id)  # until the answer is here, and written down
        created = self.client.create_run(self._experiment_id, start_time=_ms(at), tags=tags | extra, run_name=name)
        run_id = str(created.info.run_id)
        self._bare.add(run_id)
        self._running.add(run_id)
        return run_id

    def _search(self, tags: Mapping[str, str], at: float) -> str | None:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items() if key != STUDY)
        for run in self.client.search_runs([self._experiment_id], query, max_results=10):
            run_id = str(run.info.run_id)
            if TRIAL_ID not in tags or self._is_ours is None or run.info.start_time == _ms(at):
                return run_id
            if not self._is_ours():
                raise StudyError("Runs of another driver must stay as they are, but this one may have been taken over.")
            self.client.set_terminated(run_id, "KILLED")
            self.client.set_tag(run_id, TRIAL_ID, f"{tags[TRIAL_ID]}, lost with the log of another machine")
        return None


class _RunMap:
    """Trial id to run and model ids, in a file; lines lost in a crash are recovered by the runs' tags."""

    def __init__(self, path: Path) -> None:
        self._log = AppendLog(path)
        self._lock = threading.Lock()
        self._ids: dict[tuple[str, str], str] = {}
        for line in self._log.new_lines():
            with contextlib.suppress(ValueError):  # a line that is damaged
                trial_id, kind, value = json.loads(line)
                self._ids[trial_id, kind] = value

    def run_id(self, trial_id: str) -> str | None:
        return self._ids.get((trial_id, "run_id")) or None

    def forget_all_but(self, trials: Collection[str]) -> None:
        """Forget other trials' ids for good, also for who reads the file later."""
        for (trial_id, kind), value in list(self._ids.items()):
            if trial_id not in trials and value:
                self.put(trial_id, kind, "")

    def put(self, trial_id: str, kind: str, value: str) -> None:
        with self._lock:
            if self._ids.get((trial_id, kind)) != value:
                self._log.append(json.dumps([trial_id, kind, value]).encode() + b"\n")
                self._ids[trial_id, kind] = value


def _ms(at: float) -> int:
    return round(at * 1000)
