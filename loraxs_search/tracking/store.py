"""The store that runs are recorded in: create the embedded one, check a server, serve the UI."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import TrackingError
from loraxs_search.home import disk_faults, ensure_dir, file_lock
from loraxs_search.mlflow_http import check_server
from loraxs_search.mlflow_uri import (
    ENV_PASSWORD,
    ENV_USER,
    artifact_root,
    prepare_environment,
    redact,
    resolve_uri,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["connect", "ensure_store", "resolve_uri", "run_ui", "ui_command"]


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
        _check_access(uri)
    elif not path.exists():
        ensure_dir(path.parent)
        with disk_faults(path), file_lock(path.with_name(f"{path.name}.lock")):
            if not path.exists():
                _create(path)


def connect(uri: str) -> MlflowClient:
    """Return a client of the store at `uri`, both for runs and models, whatever the environment says."""
    prepare_environment()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def ui_command(uri: str, *, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """Return the command that serves the MLflow UI over an embedded store.

    Raises:
        TrackingError: `uri` is a server: it serves its own UI.
    """
    root = artifact_root(uri)
    if root is None:
        raise TrackingError(
            f"The store at {redact(uri)} is a server with a UI of its own.", hint=f"open {redact(uri)} in a browser"
        )
    serve = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    return [*serve, "--backend-store-uri", uri, "--artifacts-destination", str(root)]


def run_ui(uri: str, *, host: str = "127.0.0.1", port: int = 5000) -> int:
    """Serve the MLflow UI until interrupted; return its exit code.

    Raises:
        TrackingError: the port is taken, or `uri` is a server.
    """
    command = ui_command(uri, host=host, port=port)
    _check_port(host, port)
    ensure_store(uri)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the server would outlive us
    # A group of its own: Ctrl-C in a terminal goes to us alone, and all its processes are ended together.
    with subprocess.Popen(command, env=server_environment(), start_new_session=True) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            return 0


def server_environment() -> dict[str, str]:
    """Return the environment of a server that we start: no telemetry, no background jobs we do not use."""
    return os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _check_access(uri: str) -> None:
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise TrackingError(
            f"The MLflow server at {redact(uri)} must let us read experiments, but: {redact(str(error))}.",
            hint=f"set {ENV_USER} and {ENV_PASSWORD}: an account that an address names is kept nowhere; or start the "
            "server with --allowed-hosts",
        ) from error


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"Port {port} on {host} must be free, but: {error.strerror}.", hint="choose another with --port"
            ) from error


def _create(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    prepare_environment()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with disk_faults(path):
        try:
            # The store's own constructor runs every migration and records where the default experiment keeps artifacts.
            store = SqlAlchemyStore(f"sqlite:///{temporary}", str(path.parent / "artifacts"))
            store.engine.dispose()
            os.replace(temporary, path)
        finally:
            for leftover in path.parent.glob(f"{temporary.name}*"):
                leftover.unlink()
