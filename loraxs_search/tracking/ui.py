"""MLflow's UI: served over an embedded store, and the page of it that shows a study."""

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
from typing import TYPE_CHECKING

from loraxs_search.errors import StudyError, TrackingError
from loraxs_search.home import disk_faults, ensure_dir, home
from loraxs_search.mlflow_uri import all_pages, artifact_root, check_server
from loraxs_search.tracking.store import KIND, STUDY, STUDY_ID, connect, ensure_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_PORT = 5000
_MORE_PORTS = 20
_START_S, _END_S = 120.0, 20.0
_WORKSPACE = "?workflowType=machine_learning"  # of links: the one for training
_VIEW_TAG, _OUR_VIEWS = "mlflow.sharedViewState.", "loraxs-"  # of an experiment's tag, and of the key behind it
_RUN_NAME = "attributes.`Run Name`"
_USUAL = ("rank", "target_modules", "method", "learning_rate", "head_learning_rate")  # parameters that come first
_MAX_COLUMNS = 40
_EVERYWHERE = ("0.0.0.0", "::", "")  # as hosts that a server listens on; a browser needs another


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
