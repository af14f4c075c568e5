"""Finding the runs of searches in an MLflow store, and where MLflow shows a study."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from loraxs_search.mlflow_http import check_server
from loraxs_search.mlflow_uri import sqlite_path
from loraxs_search.tasks.kinds import find_metric
from loraxs_search.tracking._runs import KIND, STUDY, STUDY_ID
from loraxs_search.tracking.store import connect
from loraxs_search.tracking.study_view import USUAL, trials_view, view_key, write_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


METRIC, DIRECTION = "search.metric", "search.direction"  # params of a search's run, which the driver gives it
_PAGE = 1000


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
    token: str | None = None
    while True:
        page = client.search_runs(
            experiments, query, max_results=_PAGE, order_by=["attributes.start_time DESC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def is_maximized(of_search: Mapping[str, str]) -> bool:
    """Return which way a study's metric is better, as the params of its search have it."""
    known = find_metric(of_search.get(METRIC, ""))
    return of_search.get(DIRECTION, known.direction if known else "maximize") == "maximize"


def open_view(client: MlflowClient, study: str, study_id: str = "") -> tuple[str, str] | None:
    """Return the experiment of a study and the key of its view; None where no such study is recorded.

    A study of an older version has no view, nor has one that many newer ones came after: it is made here.

    Args:
        study_id: Of the study that is meant; without it the latest one of that name.
    """
    for run in searches_named(client, study):
        tags, params = run.data.tags, run.data.params
        if study_id not in ("", tags[STUDY_ID]):
            continue
        experiment_id, key = str(run.info.experiment_id), view_key(tags[STUDY_ID])
        direction = "maximize" if is_maximized(params) else "minimize"
        view = trials_view(study, run.info.run_id, params.get(METRIC, ""), direction, USUAL, time.time())
        write_view(client, experiment_id, client.get_experiment(experiment_id).tags, key, view)
        return experiment_id, key
    return None
