"""Deleting the runs of a study that goes. What is registered keeps its run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import TrackingError
from loraxs_search.mlflow_http import check_server
from loraxs_search.mlflow_uri import redact, sqlite_path
from loraxs_search.tracking._followed import recorded_id
from loraxs_search.tracking._runs import STUDY_ID
from loraxs_search.tracking.store import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PAGE = 1000


def remove_runs(uri: str, folder: Path, experiment: str, *, dry_run: bool = False) -> tuple[int, tuple[str, ...]]:
    """Delete a study's runs as the MLflow UI does, and return their number and the versions whose runs stay.

    MLflow can restore them until somebody calls `mlflow gc`. It may be repeated. Logged models stay: registered
    versions may be of them.

    Raises:
        TrackingError: the store does not answer, or refuses.
    """
    study_id, path = recorded_id(folder), sqlite_path(uri)
    if not study_id or (path is not None and not path.exists()):
        return 0, ()
    if path is None:
        check_server(uri)
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        runs = list(_runs(client, experiment, study_id))
        named = _registered(client, experiment)
        kept = {run.info.run_id: named[run.info.run_id] for run in runs if run.info.run_id in named}
        parents = {run.data.tags.get("mlflow.parentRunId") for run in runs if run.info.run_id in kept}
        going = [run.info.run_id for run in runs if run.info.run_id not in kept.keys() | parents]
        for run_id in [] if dry_run else going:
            client.delete_run(run_id)
    except MlflowException as error:
        raise TrackingError(
            f"The runs of a study must be deleted at {redact(uri)}, but: {redact(str(error))}"
        ) from error
    return len(going), tuple(sorted(kept.values()))


def _runs(client: MlflowClient, name: str, study_id: str) -> Iterator[Any]:
    """Yield the study's runs, its trials before the search's own."""
    experiment = client.get_experiment_by_name(name)
    token: str | None = None
    while experiment is not None:
        query = f"tags.`{STUDY_ID}` = '{study_id}'"
        page = client.search_runs([experiment.experiment_id], query, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _registered(client: MlflowClient, task: str) -> dict[str, str]:
    """Return the versions of a task by their run."""
    versions, token = dict[str, str](), None
    while True:
        page = client.search_model_versions(f"name = '{task}'", max_results=_PAGE, page_token=token)
        versions |= {version.run_id: f"{task}:{version.version}" for version in page if version.run_id}
        token = page.token
        if not token:
            return versions
