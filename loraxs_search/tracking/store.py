"""The store that runs are recorded in: create the embedded one, check a server, delete a study's runs.

What a study folder knows of it, too: the id that its runs carry, and how much of its log they have.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import TrackingError
from loraxs_search.home import disk_faults, ensure_dir, file_lock, lock_beside, write_atomic
from loraxs_search.log.study_log import JOURNAL, lines_from
from loraxs_search.mlflow_uri import (
    ENV_PASSWORD,
    ENV_USER,
    all_pages,
    check_server,
    prepare_environment,
    redact,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Tags of all runs: the study's name, and `search` or `trial`; the id that tells it from others of that name.
STUDY, KIND, STUDY_ID = "loraxs.study", "loraxs.kind", "loraxs.study_id"
OFFSET = "mlflow.offset"  # the file that says how much of the log MLflow has
_ID = "tracking.id"


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


# ---- what a study folder knows of it ---------------------------------------------------------------------------------
def study_id(folder: Path) -> str:
    """Return the id that tells this study from one of the same name on another machine; it is made once."""
    if not (known := recorded_id(folder)):
        known = f"{folder.name}-{secrets.token_hex(4)}"
        write_atomic(folder / _ID, known)
    return known


def recorded_id(folder: Path) -> str:
    """Return the id that the runs of a study folder carry; empty where there are none yet."""
    path = folder / _ID
    return path.read_text().strip() if path.exists() else ""


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
    return bool(recorded_id(folder)) and any(True for _ in lines_from(folder / JOURNAL, read_offset(folder)))


def remove_runs(uri: str, folder: Path, experiment: str, *, dry_run: bool = False) -> tuple[int, tuple[str, ...]]:
    """Delete a study's runs as the MLflow UI does, and return their number and the versions whose runs stay.

    MLflow can restore them until a user calls `mlflow gc`. It may be repeated. Logged models stay: registered
    versions may be of them.

    Raises:
        TrackingError: the store does not answer, or refuses.
    """
    study, path = recorded_id(folder), sqlite_path(uri)
    if not study or (path is not None and not path.exists()):  # an embedded one is not made to be asked
        return 0, ()
    if path is None:
        check_server(uri)  # in seconds; a call to a dead server may hang for much longer
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_experiment_by_name(experiment)
        query = f"tags.`{STUDY_ID}` = '{study}'"  # its trials come before the search's own run
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
