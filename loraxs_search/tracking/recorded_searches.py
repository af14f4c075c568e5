"""The runs of searches in an MLflow store: finding them, where MLflow shows a study, and deleting those of one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import TrackingError
from loraxs_search.mlflow_client import all_pages
from loraxs_search.mlflow_uri import check_server, redact, sqlite_path
from loraxs_search.tasks.kinds import find_metric
from loraxs_search.tracking._runs import KIND, STUDY, STUDY_ID
from loraxs_search.tracking.followed import recorded_id
from loraxs_search.tracking.run_texts import USUAL, trials_view, view_key, write_view
from loraxs_search.tracking.store import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def existing_client(uri: str) -> MlflowClient | None:
    """Return a client of a store that is there; an embedded one is not made to be asked."""
    path = sqlite_path(uri)
    if path is None:
        check_server(uri)  # in seconds; a call to a dead server may hang for much longer
    return None if path is not None and not path.exists() else connect(uri)


def searches_named(client: MlflowClient, study: str) -> Iterator[Run]:
    """Yield the searches' own runs that have a study's name, latest first."""
    name = study.replace("'", "")  # no name that we give has one
    query = f"tags.`{KIND}` = 'search' and tags.`{STUDY}` = '{name}'"
    experiments = [each.experiment_id for each in client.search_experiments()]
    yield from all_pages(client.search_runs, experiments, query, order_by=["attributes.start_time DESC"])


def open_view(client: MlflowClient, study: str, study_id: str = "") -> tuple[str, str] | None:
    """Return the experiment of a study and the key of its view; None if no such study is recorded.

    One that many newer studies came after has no view any more: it is made here.

    Args:
        study_id: Of the study that is meant; without it the latest one of that name.
    """
    for run in searches_named(client, study):
        tags, params = run.data.tags, run.data.params
        if study_id not in ("", tags[STUDY_ID]):
            continue
        experiment_id, key = str(run.info.experiment_id), view_key(tags[STUDY_ID])
        metric = params.get("search.metric", "")
        known = find_metric(metric)
        direction = params.get("search.direction", known.direction if known else "maximize")
        view = trials_view(study, run.info.run_id, metric, direction, USUAL, time.time())
        write_view(client, experiment_id, client.get_experiment(experiment_id).tags, key, view)
        return experiment_id, key
    return None


def remove_runs(uri: str, folder: Path, experiment: str, *, dry_run: bool = False) -> tuple[int, tuple[str, ...]]:
    """Delete a study's runs as the MLflow UI does, and return their number and the versions whose runs stay.

    MLflow can restore them until a user calls `mlflow gc`. It may be repeated. Logged models stay: registered
    versions may be of them.

    Raises:
        TrackingError: the store does not answer, or refuses.
    """
    study_id = recorded_id(folder)
    if not study_id or (client := existing_client(uri)) is None:
        return 0, ()
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
        raise TrackingError(
            f"The runs of a study must be deleted at {redact(uri)}, but: {redact(str(error))}"
        ) from error
    return len(going), tuple(sorted(kept.values()))
