"""The store that runs are recorded in: create the embedded one, check a server, delete a study's runs, serve the UI.

What a study folder knows of it, too: how much of its log the store has.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import StudyError, TrackingError
from loraxs_search.home import disk_faults, ensure_dir, file_lock, home, lock_beside
from loraxs_search.log.study_log import JOURNAL, lines_from
from loraxs_search.mlflow_uri import (
    ENV_PASSWORD,
    ENV_USER,
    all_pages,
    artifact_root,
    check_server,
    prepare_environment,
    redact,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Tags of all runs: the study's name, and `search` or `trial`; the id that tells it from others of that name.
STUDY, KIND, STUDY_ID = "loraxs.study", "loraxs.kind", "loraxs.study_id"
OFFSET = "mlflow.offset"  # the file that says how much of the log MLflow has
DEFAULT_PORT = 5000
_MORE_PORTS = 20
_START_S, _END_S = 120.0, 20.0
_WORKSPACE = "?workflowType=machine_learning"  # of links: the one for training
_VIEW_TAG, _OUR_VIEWS = "mlflow.sharedViewState.", "loraxs-"  # of an experiment's tag, and of the key behind it
_RUN_NAME = "attributes.`Run Name`"
_USUAL = ("rank", "target_modules", "method", "learning_rate", "head_learning_rate")  # parameters that come first
_MAX_COLUMNS = 40
_EVERYWHERE = ("0.0.0.0", "::", "")  # as hosts that a server listens on; a browser needs another


def ensure_store(uri: str) -> None:
    """Make sure that runs can be recorded at `uri`, within seconds.

    The embedded database is created once: under a lock, in a temporary file that is renamed, because a half-created
    one cannot be repaired. A server is asked whether it is alive and lets us in.

    Raises:
        TrackingError: no server answers, it refuses us, or the database is of another MLflow version.
        HomeError: the database cannot be written.
    """
    path = sqlite_path(uri)
    if path is None:
        check_server(uri)
        client = connect(uri)
        from mlflow.exceptions import MlflowException

        try:
            client.search_experiments(max_results=1)
        except MlflowException as error:
            hint = "see its log: its database may be away"
            if error.get_http_status_code() < 500:
                hint = f"set {ENV_USER} and {ENV_PASSWORD}, or start the server with --allowed-hosts"
            raise TrackingError(
                f"The MLflow server at {uri} must let us read experiments, but: {redact(str(error))}.",
                hint=hint,
            ) from error
    elif not path.exists():
        ensure_dir(path.parent)
        with disk_faults(path), file_lock(lock_beside(path)):
            if path.exists():  # another process was quicker
                return
            prepare_environment()
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                # The store's own constructor runs every migration and records where the default experiment keeps
                # artifacts.
                store = SqlAlchemyStore(f"sqlite:///{temporary}", str(path.parent / "artifacts"))
                store.engine.dispose()
                os.replace(temporary, path)
            finally:
                for leftover in path.parent.glob(f"{temporary.name}*"):
                    leftover.unlink()


def connect(uri: str) -> MlflowClient:
    """Return a client of the store at `uri`, both for runs and models, whatever the environment says."""
    prepare_environment()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def read_offset(folder: Path) -> int:
    """Return how many bytes of a study's log MLflow has; 0 where no line begins there, as after a power cut."""
    try:
        offset = int((folder / OFFSET).read_text())
        with (folder / JOURNAL).open("rb") as file:
            file.seek(max(0, offset - 1))
            return offset if offset > 0 and file.read(1) == b"\n" else 0
    except (FileNotFoundError, ValueError):
        return 0  # everything is applied again, which changes nothing


def has_waiting(folder: Path) -> bool:
    """Return whether events of a study folder have yet to reach MLflow; it needs no lock, and writes nothing."""
    return any(True for _ in lines_from(folder / JOURNAL, read_offset(folder)))


def remove_runs(uri: str, study_id: str, experiment: str, *, dry_run: bool = False) -> tuple[int, tuple[str, ...]]:
    """Delete a study's runs as the MLflow UI does, and return their number and the versions whose runs stay.

    MLflow can restore them until a user calls `mlflow gc`. It may be repeated. Logged models stay: registered
    versions may be of them.

    Raises:
        TrackingError: the store does not answer, or refuses.
    """
    path = sqlite_path(uri)
    if path is not None and not path.exists():  # an embedded one is not made to be asked
        return 0, ()
    if path is None:
        check_server(uri)  # in seconds; a call to a dead server may hang for much longer
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_experiment_by_name(experiment)
        query = f"tags.`{STUDY_ID}` = '{study_id}'"  # its trials come before the search's own run
        runs = [] if found is None else list(all_pages(client.search_runs, [found.experiment_id], query))
        versions = all_pages(client.search_model_versions, f"name = '{experiment}'")
        named = {it.run_id: f"{experiment}:{it.version}" for it in versions if it.run_id}
        kept = {run.info.run_id: named[run.info.run_id] for run in runs if run.info.run_id in named}
        parents = {run.data.tags.get("mlflow.parentRunId") for run in runs if run.info.run_id in kept}
        going = [run.info.run_id for run in runs if run.info.run_id not in kept.keys() | parents]
        for run_id in [] if dry_run else going:
            client.delete_run(run_id)
    except MlflowException as error:
        raise TrackingError(f"The runs of a study must be deleted at {uri}, but: {redact(str(error))}") from error
    return len(going), tuple(sorted(kept.values()))


def ui_page(uri: str, study: str | None = None, study_id: str = "") -> Callable[[str], str]:
    """Return what makes a link of an address: to the trials of a study, or to all experiments.

    Args:
        study_id: Tells it from studies of that name on other machines; without it the latest one is meant.
    Raises:
        StudyError: no study of that name is recorded there.
        TrackingError: the server does not answer, or refuses us.
    """
    ensure_store(uri)
    if study is None:
        return lambda address: f"{address}/#/experiments{_WORKSPACE}"
    client, name = connect(uri), study.replace("'", "")  # no name that we give has one
    query = f"tags.`{KIND}` = 'search' and tags.`{STUDY}` = '{name}'"
    query += f" and tags.`{STUDY_ID}` = '{study_id}'" if study_id else ""
    experiments = [each.experiment_id for each in client.search_experiments()]
    latest = ["attributes.start_time DESC"]
    run = next(all_pages(client.search_runs, experiments, query, order_by=latest, max_results=1), None)
    if run is None:
        raise StudyError(
            f"Study {study!r} must be recorded at {uri}, but is not.",
            hint="`loraxs-search sync` writes there what waits here; `loraxs-search status` lists the studies here",
        )
    page = f"experiments/{run.info.experiment_id}/runs{_WORKSPACE}&viewStateShareKey={_write_view(client, run)}"
    return lambda address: f"{address}/#/{page}"


def _write_view(client: MlflowClient, run: Run) -> str:
    """Add the view of a study's trials, flat and best first, to its experiment, and return its key, as links have it.

    One that is there stays.

    Args:
        run: The search's own, whose children the trials are.
    """
    experiment_id, run_id = run.info.experiment_id, run.info.run_id
    key, tags = _OUR_VIEWS + run.data.tags[STUDY_ID], client.get_experiment(experiment_id).tags
    if _VIEW_TAG + key in tags:
        return key
    params = run.data.params
    metric, parameters = params.get("search.metric", ""), params.get("search.parameters", "").split(", ")
    modules = "target_modules" if "target_modules" in parameters else "num_target_modules"
    first = ["rank", modules]
    others = sorted((name for name in parameters if name and name not in first), key=lambda name: name not in _USUAL)
    columns = {
        f"metrics.`{metric}`": 90,
        **{f"params.`{name}`": 90 for name in first},
        "metrics.`stored_bytes`": 90,
        "tags.`loraxs.state`": 100,
        "tags.`loraxs.reason`": 280,
        "metrics.`total_device_s`": 90,
        **{f"params.`{name}`": 100 for name in others[:_MAX_COLUMNS]},
    }
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{run_id}'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": params.get("search.direction") == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "columnOrder": [_RUN_NAME, *columns],
        "columnWidths": {_RUN_NAME: 260, **columns},
    }
    at = round(time.time() * 1000)
    view = json.dumps({"name": run.data.tags[STUDY], "createdAt": at, "updatedAt": at, "state": json.dumps(state)})
    client.set_experiment_tag(experiment_id, _VIEW_TAG + key, view)
    return key


def run_ui(
    uri: str, *, host: str = "127.0.0.1", port: int | None = None, ready: Callable[[str], None] = lambda _: None
) -> int:
    """Serve the MLflow UI over an embedded store until interrupted; return its exit code.

    What the server prints goes to `ui.log` in the home.

    Args:
        port: None takes the first free one from 5000 on.
        ready: Called with the UI's address once it answers.
    Raises:
        TrackingError: the port is taken, or the UI does not start.
    """
    port = _free_port(host, port)
    ensure_store(uri)
    address = f"http://{'127.0.0.1' if host in _EVERYWHERE else host}:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--artifacts-destination", str(artifact_root(uri))]
    # No telemetry, and no background jobs that we do not use.
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log, deadline = ensure_dir(home()) / "ui.log", time.monotonic() + _START_S
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the server would outlive us
    with disk_faults(log), log.open("wb") as out:
        # In its own group: Ctrl-C in a terminal goes only to us, and its processes end together.
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        while True:
            try:
                check_server(address, timeout_s=1.0)
                break
            except TrackingError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    lines = map(str.strip, log.read_text(errors="replace").split("\n"))
                    said = [line.rstrip(".") for line in lines if line] or [str(error)]
                    law = f"The MLflow UI must answer at {address}, but: {said[-1]}."
                    raise TrackingError(law, hint=f"see {log}") from error
            time.sleep(0.1)
        ready(address)
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_END_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a user presses Ctrl-C again
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port(host: str, port: int | None) -> int:
    """Return `port`, by default the first free one from 5000 on.

    Raises:
        TrackingError: it is taken, or all are.
    """
    reason = ""
    for number in range(DEFAULT_PORT, DEFAULT_PORT + _MORE_PORTS) if port is None else (port,):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, number))
                return number
            except OSError as error:
                reason = str(error.strerror)
    law = f"Port {port} on {host} must be free, but: {reason}."
    if port is None:
        last = DEFAULT_PORT + _MORE_PORTS - 1
        law = f"A port from {DEFAULT_PORT} to {last} on {host} must be free, but none is."
    raise TrackingError(law, hint="choose another with --port")
