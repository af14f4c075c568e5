"""Where MLflow shows a study: found by its name, its view made where there is none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from loraxs_search.tracking._runs import STUDY_ID
from loraxs_search.tracking.recorded_searches import METRIC, is_maximized, searches_named
from loraxs_search.tracking.study_view import USUAL, trials_view, view_key, write_view

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
