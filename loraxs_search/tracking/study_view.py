"""A study's trials as a shared view of MLflow's table of runs, and the link that opens it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG, _OURS = "mlflow.sharedViewState.", "loraxs-"  # of an experiment's tag, and of the key behind it
_MAX_VALUE = 20_000  # characters of an experiment's tag
_MAX_VIEWS = 30  # that an experiment keeps of ours: every page of it reads all of them
_RUN_NAME = "attributes.`Run Name`"
USUAL = ("rank", "target_modules", "method", "learning_rate", "head_learning_rate")  # parameters that come first
_MAX_COLUMNS = 40


def view_key(study_id: str) -> str:
    """Return the key of a study's view, as links have it."""
    return _OURS + study_id


def runs_link(address: str, experiment_id: str, key: str | None = None) -> str:
    """Return the link to an experiment's runs, in the workspace for training; with a key, to that view of them."""
    shared = f"&viewStateShareKey={key}" if key else ""
    return f"{address}/#/experiments/{experiment_id}/runs?workflowType=machine_learning{shared}"


def experiments_link(address: str) -> str:
    """Return the link to all experiments, in the workspace for training."""
    return f"{address}/#/experiments?workflowType=machine_learning"


def trials_view(
    study: str, run_id: str, metric: str, direction: str, parameters: Sequence[str], created_at: float
) -> str:
    """Return the view of a study's trials: flat, the best one first.

    Args:
        run_id: The search's own run, whose children the trials are.
        metric: What trials are compared by; `direction` is `maximize` or `minimize`.
        parameters: Columns beside what every trial has.
        created_at: Seconds since 1970.
    """
    modules = "target_modules" if "target_modules" in parameters else "num_target_modules"
    first = ["rank", modules]
    others = sorted((name for name in parameters if name not in first), key=lambda name: name not in USUAL)
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
        "orderByAsc": direction == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns),
        "columnOrder": [_RUN_NAME, *columns],
        "columnWidths": {_RUN_NAME: 260, **columns},
    }
    at = round(created_at * 1000)
    return json.dumps({"name": study, "createdAt": at, "updatedAt": at, "state": json.dumps(state)})


def write_view(client: MlflowClient, experiment_id: str, tags: Mapping[str, str], key: str, view: str) -> None:
    """Add a view to an experiment that lacks it; of many, the oldest ones of ours go.

    Args:
        tags: The experiment's.
    """
    name = _TAG + key
    if name in tags or len(view) > _MAX_VALUE:
        return
    client.set_experiment_tag(experiment_id, name, view)
    for old in _oldest({**tags, name: view}):
        client.delete_experiment_tag(experiment_id, old)


def _oldest(tags: Mapping[str, str]) -> list[str]:
    made: list[tuple[float, str]] = []
    for key, value in tags.items():
        if key.startswith(_TAG + _OURS):
            with contextlib.suppress(ValueError, TypeError, KeyError):  # somebody else wrote there, in another form
                made.append((float(json.loads(value)["createdAt"]), key))
    return [key for _, key in sorted(made)[:-_MAX_VIEWS]]
