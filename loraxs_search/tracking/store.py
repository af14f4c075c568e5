"""The store that runs are recorded in: create the embedded one, check a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import TrackingError
from loraxs_search.home import disk_faults, ensure_dir, file_lock, lock_beside
from loraxs_search.mlflow_uri import ENV_PASSWORD, ENV_USER, check_server, prepare_environment, redact, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
        with disk_faults(path), file_lock(lock_beside(path)):
            if not path.exists():
                _create(path)


def connect(uri: str) -> MlflowClient:
    """Return a client of the store at `uri`, both for runs and models, whatever the environment says."""
    prepare_environment()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _check_access(uri: str) -> None:
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        client.search_experiments(max_results=1)
    except MlflowException as error:
        hint = "see its log: its database may be away"
        if error.get_http_status_code() < 500:
            hint = f"set {ENV_USER} and {ENV_PASSWORD}: an account that an address names is kept nowhere; or start the "
            hint += "server with --allowed-hosts"
        raise TrackingError(
            f"The MLflow server at {redact(uri)} must let us read experiments, but: {redact(str(error))}.", hint=hint
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
