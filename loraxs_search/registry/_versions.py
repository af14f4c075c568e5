"""A task's registered model, its versions, and the tags that hold their records.

MLflow's pages hide tags of a registered model that begin with `mlflow.`. They show every tag of a version, so the
records of a version are kept on the model too, by the adapter's digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import ForeignVersionError, IntegrityError
from loraxs_search.mlflow_client import all_pages, ensure_experiment
from loraxs_search.mlflow_uri import artifact_root
from loraxs_search.records import (
    ADAPTER_FORMAT,
    Candidate,
    Decision,
    Manifest,
    Refit,
    check_format,
    from_json,
    to_json,
)
from loraxs_search.registry._mlflow import is_missing
from loraxs_search.registry.names import ADAPTER, KIND, is_sha256

if TYPE_CHECKING:
    from mlflow import MlflowClient


_HIDDEN = "mlflow."
DECISIONS = f"{_HIDDEN}loraxs.decision."  # the time of each decision stands behind it
SUMMARY = f"{_HIDDEN}loraxs.champion"
PAGE = f"{_HIDDEN}loraxs.page"  # sha256 of the description that we wrote
CHANGE = f"{_HIDDEN}loraxs.change"  # a rollback or a removal that has begun and is not recorded yet
_ADAPTER = f"{_HIDDEN}loraxs.adapter."
CANDIDATE, DECISION = "candidate", "decision"


def adapter_tag(digest: str, kind: str) -> str:
    """Return the tag that holds the `CANDIDATE` or `DECISION` of an adapter."""
    return f"{_ADAPTER}{digest[:32]}.{kind}"


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
    """Yield all of the task's versions."""
    return all_pages(client.search_model_versions, f"name = '{task}'")


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


def _add_version(client: MlflowClient, uri: str, name: str, model: Any, tags: Mapping[str, str]) -> Any:
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


def with_digest(client: MlflowClient, task: str, digest: str) -> Any | None:
    """Return a version of the task that holds the folder of this content address; None if there is none."""
    found = client.search_model_versions(f"name = '{task}' and tags.`loraxs.digest` = '{digest}'", max_results=1)
    return found[0] if found else None


def register(
    client: MlflowClient, uri: str, task: str, folder: Path, manifest: Manifest, tags: Mapping[str, str]
) -> int:
    """Return the version of the task that holds `folder`, registered unless one with its digest exists."""
    digest = tags["loraxs.digest"]
    if (known := with_digest(client, task, digest)) is not None:
        for key, value in tags.items():
            client.set_model_version_tag(task, known.version, key, value)
        return int(known.version)
    model = _logged_model(client, uri, folder, manifest, digest)
    made = _add_version(client, uri, task, model, tags)
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
        name=f"{manifest.task.registered_name}-{manifest.trial_id}".replace(".", "-"),
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


_MAX_TAG = 5000  # characters a registered model's tag may have in MLflow's tables
FORMAT = "loraxs.format"  # of a version: `ADAPTER_FORMAT`


@dataclass(frozen=True)
class RegisteredAdapter:
    """A version of a task's adapters.

    Args:
        digest: Content address of its folder, as `folder_digest` gives it.
        candidate: The scores it was promoted with.
        decision: Why it was.
        source: Where its files lie, as MLflow names it.
        evidence: sha256 of its answers to the test rows; None when there are none.
        created_at: ISO 8601.
    """

    task: str
    version: int
    aliases: tuple[str, ...]
    digest: str
    candidate: Candidate
    decision: Decision
    source: str
    run_id: str | None = None
    evidence: str | None = None
    created_at: str = ""


def read_version(version: Any, model_tags: Mapping[str, str]) -> RegisteredAdapter:
    """Rebuild a record from MLflow's model version and the tags of its registered model.

    Raises:
        ForeignVersionError: something else registered it, or another version of this package.
    """
    tags = version.tags
    try:
        check_format(int(tags[FORMAT]), f"version {version.version}")
        digest = _digest(tags["loraxs.digest"])
        return RegisteredAdapter(
            task=version.name,
            version=int(version.version),
            aliases=tuple(sorted(version.aliases)),
            digest=digest,
            candidate=from_json(Candidate, model_tags[adapter_tag(digest, CANDIDATE)]),
            decision=from_json(Decision, model_tags[adapter_tag(digest, DECISION)]),
            source=version.source,
            run_id=version.run_id or None,
            evidence=tags.get(EVIDENCE),
            created_at=datetime.fromtimestamp(int(version.creation_timestamp) / 1000, UTC).isoformat("T", "seconds"),
        )
    except (KeyError, ValueError, IntegrityError) as error:
        raise ForeignVersionError(
            f"Version {version.version} of {version.name} must be an adapter that this loraxs-search reads: {error}.",
            hint=f"name another version; `loraxs-search rollback {version.name} --to N` makes one the champion",
        ) from error


def _digest(tag: str) -> str:
    if not is_sha256(tag):  # it names a folder of the cache
        raise ValueError(f"`digest` must be 64 hex digits, but got {tag!r}")
    return tag


def version_tags(manifest: Manifest, candidate: Candidate, digest: str) -> dict[str, str]:
    """Return the tags of a new version: what people look for in the UI."""
    scores = {f"test.{name}": f"{value:.6g}" for name, value in candidate.test_metrics.items()}
    scores |= {f"validation.{name}": f"{value:.6g}" for name, value in candidate.validation_metrics.items()}
    return scores | {
        "loraxs.study": candidate.study,
        "trial_id": candidate.trial_id,
        "stored_bytes": str(candidate.stored_bytes),
        "loraxs.base_model": manifest.base_model.id,
        "loraxs.digest": digest,
        FORMAT: str(ADAPTER_FORMAT),
    }


def record_tags(candidate: Candidate, decision: Decision, digest: str) -> dict[str, str]:
    """Return the tags of the registered model that hold the records of a new version."""
    return {adapter_tag(digest, CANDIDATE): _fitted(candidate), adapter_tag(digest, DECISION): fitted(decision)}


def _fitted(candidate: Candidate) -> str:
    """Return the candidate as JSON short enough for a tag: its own scores whole, what is beside them shortened."""
    text, limit = to_json(candidate), _MAX_TAG
    while len(text) > _MAX_TAG and limit > 1:
        limit //= 2
        text = to_json(_shortened(candidate, limit))
    return text


def _shortened(candidate: Candidate, limit: int) -> Candidate:
    """Cut texts to `limit` characters, and round and count off refits."""
    baselines = [
        replace(
            each,
            answer=each.answer[:limit] if isinstance(each.answer, str) else each.answer,
            failed=each.failed[:limit],
        )
        for each in candidate.baselines
    ]
    refits = [
        Refit(each.seed, {name: float(f"{x:.6g}") for name, x in each.validation_metrics.items()}, each.failed[:limit])
        for each in candidate.refits[: max(1, limit // 25)]
    ]
    earlier = candidate.earlier_finalists[: limit // 25]
    return replace(candidate, baselines=tuple(baselines), refits=tuple(refits), earlier_finalists=earlier)


def fitted(decision: Decision) -> str:
    """Return the decision as JSON short enough for a tag, the last reasons kept: they say what was decided.

    Of many slices, those that lose most are kept.
    """
    text, short = to_json(decision), decision
    while len(text) > _MAX_TAG and short.slices:
        least = min(short.slices, key=lambda each: -math.inf if each.loss is None else each.loss)
        short = replace(short, slices=tuple(each for each in short.slices if each is not least))
        text = to_json(short)
    while len(text) > _MAX_TAG and (short.reasons or short.seen):
        short = replace(short, reasons=short.reasons[1:], seen=short.seen if short.reasons else short.seen[:-20])
        left_out = f"({len(decision.reasons) - len(short.reasons)} more reasons)"
        text = to_json(replace(short, reasons=(left_out, *short.reasons)))
    return text
