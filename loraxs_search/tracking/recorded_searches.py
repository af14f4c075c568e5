"""Finding the runs of searches in an MLflow store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from loraxs_search.mlflow_http import check_server
from loraxs_search.mlflow_uri import sqlite_path
from loraxs_search.tasks.kinds import find_metric
from loraxs_search.tracking._runs import KIND, STUDY
from loraxs_search.tracking.store import connect

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
