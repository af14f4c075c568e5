"""What both rooms that speak MLflow ask of its client: an experiment by name, and searches page after page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import TrackingError
from loraxs_search.mlflow_uri import artifact_root, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient


def ensure_experiment(client: MlflowClient, uri: str, name: str, note: str = "") -> str:
    """Return the id of the experiment of this name, created with a description unless it exists.

    Raises:
        TrackingError: it was deleted, but MLflow still has it: it takes no runs.
    """
    from mlflow.exceptions import MlflowException

    if (known := client.get_experiment_by_name(name)) is not None:
        if known.lifecycle_stage != "active":
            raise TrackingError(
                f"The experiment {name!r} at {redact(uri)} must be active, but it was deleted.",
                hint="restore it in MLflow's UI, or delete it for good with `mlflow gc`",
            )
        return str(known.experiment_id)
    root, tags = artifact_root(uri), {"mlflow.note.content": note} if note else None
    try:
        return str(client.create_experiment(name, artifact_location=str(root) if root else None, tags=tags))
    except MlflowException:
        if (known := client.get_experiment_by_name(name)) is None:  # else another process was quicker
            raise
        return str(known.experiment_id)


def all_pages(search: Callable[..., Any], *arguments: Any, max_results: int = 1000, **options: Any) -> Iterator[Any]:
    """Yield all that a search of MLflow's client finds, page after page."""
    token: str | None = ""
    while token is not None:
        page = search(*arguments, max_results=max_results, page_token=token or None, **options)
        yield from page
        token = page.token or None
