"""Studies as their runs tell of them, for searches that start from studies of other machines."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from loraxs_search.errors import TrackingError
from loraxs_search.mlflow_http import check_server
from loraxs_search.mlflow_uri import redact, sqlite_path
from loraxs_search.records import EarlierStudy, EarlierTrial, TrialState
from loraxs_search.tasks.kinds import find_metric
from loraxs_search.tracking._recorder import LINEAGE, STATE
from loraxs_search.tracking._runs import KIND, STUDY, STUDY_ID, TRIAL_ID
from loraxs_search.tracking.store import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Params of a search's run, which the driver gives it.
BASE_DIGEST, TASK_KIND, METRIC, DIRECTION = "base_digest", "task.kind", "search.metric", "search.direction"
_KEEP, _KEPT_STEP = "search.keep", "kept_step"
_PAGE = 1000
_ORDER = [TrialState.COMPLETE.value, TrialState.PRUNED.value]


def study_named(uri: str, name: str) -> EarlierStudy | None:
    """Return the latest study of that name that is recorded there; None when there is none.

    Raises:
        TrackingError: the server does not answer, or refuses us.
    """
    client = existing_client(uri)
    if client is None:
        return None
    with _asked(uri):
        return next((_study(client, run) for run in searches_named(client, name)), None)


def finished_studies(uri: str, base_digest: str, kind: str) -> Iterator[EarlierStudy]:
    """Yield the finished studies of a base and a task kind that are recorded there, latest first.

    Raises:
        TrackingError: the server does not answer, or refuses us.
    """
    client = existing_client(uri)
    if client is None:
        return
    of_base = f"params.`{BASE_DIGEST}` = '{base_digest}' and params.`{TASK_KIND}` = '{_quoted(kind)}'"
    with _asked(uri):
        for run in _searches(client, f"{of_base} and attributes.status = 'FINISHED'"):
            yield _study(client, run)


def existing_client(uri: str) -> MlflowClient | None:
    """Return a client of a store that is there; an embedded one is not made to be asked."""
    path = sqlite_path(uri)
    if path is None:
        check_server(uri)  # in seconds; a call to a dead server may hang for much longer
    return None if path is not None and not path.exists() else connect(uri)


@contextlib.contextmanager
def _asked(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(
            f"The studies that a search starts from must be readable at {redact(uri)}, but: {redact(str(error))}.",
            hint="name studies of this machine in `warm_start`, or leave it out",
        ) from error


def _quoted(text: str) -> str:
    return text.replace("'", "")  # no name that we give has one


def searches_named(client: MlflowClient, study: str) -> Iterator[Run]:
    """Yield the searches' own runs that have a study's name, latest first."""
    return _searches(client, f"tags.`{STUDY}` = '{_quoted(study)}'")


def is_maximized(of_search: Mapping[str, str]) -> bool:
    """Return which way a study's metric is better, as the params of its search have it."""
    known = find_metric(of_search.get(METRIC, ""))
    return of_search.get(DIRECTION, known.direction if known else "maximize") == "maximize"


def _searches(client: MlflowClient, query: str) -> Iterator[Run]:
    experiments = [each.experiment_id for each in client.search_experiments()]
    yield from _runs(client, experiments, f"tags.`{KIND}` = 'search' and {query}")


def _runs(client: MlflowClient, experiments: list[str], query: str) -> Iterator[Run]:
    token: str | None = None
    while True:
        page = client.search_runs(
            experiments, query, max_results=_PAGE, order_by=["attributes.start_time DESC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _study(client: MlflowClient, search: Run) -> EarlierStudy:
    params, tags = search.data.params, search.data.tags
    of_study = f"tags.`{STUDY_ID}` = '{tags[STUDY_ID]}' and tags.`{KIND}` = 'trial'"
    runs = [
        (run, score)
        for run in _runs(client, [search.info.experiment_id], of_study)
        if "@" not in run.data.tags.get(LINEAGE, "")  # a warm clone's params do not explain its scores
        and run.data.tags.get(STATE) in _ORDER
        and (score := _score(client, run, params)) is not None
    ]
    sign = -1.0 if is_maximized(params) else 1.0
    runs.sort(key=lambda each: (_ORDER.index(each[0].data.tags[STATE]), sign * each[1], each[0].data.tags[TRIAL_ID]))
    return EarlierStudy(
        name=tags[STUDY],
        study_id=tags[STUDY_ID],
        base_digest=params.get(BASE_DIGEST, ""),
        kind=params.get(TASK_KIND, ""),
        created_at=search.info.start_time / 1000,
        is_finished=search.info.status == "FINISHED",
        trials=tuple(EarlierTrial(run.data.tags[TRIAL_ID], dict(run.data.params)) for run, _ in runs),
    )


def _score(client: MlflowClient, run: Run, of_search: dict[str, str]) -> float | None:
    """Return what a trial is compared by: at the step that is kept, else at its last one."""
    metric = of_search.get(METRIC, "")
    value = run.data.metrics.get(metric)
    if of_search.get(_KEEP) == "best" and _KEPT_STEP in run.data.metrics:
        points = client.get_metric_history(run.info.run_id, metric)
        value = next((point.value for point in points if point.step == run.data.metrics[_KEPT_STEP]), value)
    return None if value is None or not math.isfinite(value) else value
