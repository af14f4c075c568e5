"""Registered models and their versions, in MLflow's calls."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.mlflow_uri import artifact_root
from loraxs_search.records import Manifest
from loraxs_search.registry._client import is_missing
from loraxs_search.registry._listing import ADAPTER, KIND

if TYPE_CHECKING:
    from mlflow import MlflowClient

_EXPERIMENT = "loraxs-search adapters"  # for adapters whose run is not in this store
_NOTE = "Adapters that were promoted here and trained elsewhere: their runs are in another store."
_MODEL_VERSIONS = "mlflow.modelVersions"
EVIDENCE, MODEL_ID = "loraxs.evidence", "loraxs.model_id"


def registered_model(client: MlflowClient, task: str) -> Any | None:
    """Return the task's registered model; None when there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(task)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise


def versions(client: MlflowClient, task: str) -> list[Any]:
    """Return the task's versions, newest first; the last hundred when there are more."""
    return list(client.search_model_versions(f"name = '{task}'", max_results=100, order_by=["version_number DESC"]))


def all_versions(client: MlflowClient, task: str) -> Iterator[Any]:
    """Yield all of the task's versions, page by page."""
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{task}'", max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def numbers(client: MlflowClient, task: str) -> list[int]:
    """Return the task's version numbers, oldest first; the last hundred when there are more."""
    return sorted(int(version.version) for version in versions(client, task))


def ensure_model(client: MlflowClient, name: str) -> None:
    """Create the registered model of a task unless it exists."""
    from mlflow.exceptions import MlflowException

    if registered_model(client, name) is not None:
        return
    try:
        client.create_registered_model(name, tags={KIND: ADAPTER})
    except MlflowException:
        if registered_model(client, name) is None:  # else another promoter was quicker
            raise


def add_version(client: MlflowClient, uri: str, name: str, model: Any, tags: Mapping[str, str]) -> Any:
    """Register a logged model as the next version of `name`."""
    return client.create_model_version(
        name,
        # Not models:/ID: the embedded store would look that up in the process-wide default store, which is another.
        source=model.artifact_location,
        run_id=model.source_run_id or None,  # a server with accounts forbids an empty one
        tags=dict(tags) | {MODEL_ID: model.model_id},
        # A server wants to know whose the artifacts are; the embedded store would again look elsewhere.
        model_id=None if artifact_root(uri) else model.model_id,
    )


def ensure_experiment(client: MlflowClient, uri: str, name: str, note: str) -> str:
    """Return the experiment of this name, created with a description unless it exists."""
    from mlflow.exceptions import MlflowException

    experiment, root = client.get_experiment_by_name(name), artifact_root(uri)
    if experiment is not None:
        return str(experiment.experiment_id)
    try:
        location = str(root) if root else None
        return str(client.create_experiment(name, artifact_location=location, tags={"mlflow.note.content": note}))
    except MlflowException:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:  # else another promoter was quicker
            raise
        return str(experiment.experiment_id)


def register(
    client: MlflowClient,
    uri: str,
    task: str,
    folder: Path,
    manifest: Manifest,
    tags: Mapping[str, str],
) -> int:
    """Return the version of the task that holds `folder`, registered unless one with its digest exists."""
    digest = tags["loraxs.digest"]
    known = client.search_model_versions(f"name = '{task}' and tags.`loraxs.digest` = '{digest}'", max_results=1)
    if known:
        for key, value in tags.items():
            client.set_model_version_tag(task, known[0].version, key, value)
        return int(known[0].version)
    model = _logged_model(client, uri, folder, manifest, digest)
    made = add_version(client, uri, task, model, tags)
    if artifact_root(uri):
        _link(client, model, task, int(made.version))
    return int(made.version)


def add_test_predictions(client: MlflowClient, task: str, version: int, name: str, content: bytes) -> None:
    """Lay a file beside a version's adapter, in `evidence/`, unless it is there; its sha256 becomes a tag."""
    tags = client.get_model_version(task, str(version)).tags
    digest = hashlib.sha256(content).hexdigest()
    if tags.get(EVIDENCE) == digest:
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "evidence"
        place.mkdir()
        (place / name).write_bytes(content)
        client.log_model_artifacts(tags[MODEL_ID], folder)
    client.set_model_version_tag(task, str(version), EVIDENCE, digest)


def _logged_model(client: MlflowClient, uri: str, folder: Path, manifest: Manifest, digest: str) -> Any:
    """Return the logged model that holds `folder`: the one its search has logged, or a new one."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for model in client.search_logged_models(experiments, f"tags.`loraxs.digest` = '{digest}'"):
        if str(model.status) == "READY":
            return model
    run_id, experiment_id = _source(client, uri, manifest)
    model = client.create_logged_model(
        experiment_id,
        name=f"{manifest.task.name}-{manifest.trial_id}".replace(".", "-"),
        source_run_id=run_id,
        tags={"loraxs.study": manifest.study, "trial_id": manifest.trial_id, "loraxs.digest": digest},
        model_type="LORAXS",
    )
    client.log_model_artifacts(model.model_id, str(folder))
    return client.finalize_logged_model(model.model_id, "READY")


def _source(client: MlflowClient, uri: str, manifest: Manifest) -> tuple[str | None, str]:
    """Return the adapter's run if this store has it, and the experiment to log in."""
    from mlflow.exceptions import MlflowException

    if manifest.run_id is not None:
        try:
            return manifest.run_id, client.get_run(manifest.run_id).info.experiment_id
        except MlflowException as error:
            if not is_missing(error):
                raise
    return None, ensure_experiment(client, uri, _EXPERIMENT, _NOTE)


def _link(client: MlflowClient, model: Any, task: str, version: int) -> None:
    """Note the version on the logged model, as a server does by itself: the UI then links the two."""
    listed = json.loads(model.tags.get(_MODEL_VERSIONS, "[]"))
    client.set_logged_model_tags(
        model.model_id, {_MODEL_VERSIONS: json.dumps([*listed, {"name": task, "version": version}])}
    )
