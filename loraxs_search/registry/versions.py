"""Names of adapters, and a task's versions as MLflow has them: tags that hold their records, and files.

MLflow's pages hide tags of a registered model that begin with `mlflow.`. They show every tag of a version, so the
records of a version are kept on the model too, by the adapter's digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import ForeignVersionError, IntegrityError, RegistryError
from loraxs_search.mlflow_uri import artifact_root, ensure_experiment
from loraxs_search.records.adapter import ADAPTER_FORMAT, Manifest, check_format
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.promotion import Candidate, Decision
from loraxs_search.records.task import MAX_NAME
from loraxs_search.registry.finalist import seed_statistics
from loraxs_search.registry.manifest import MLFLOW_FILES, MLMODEL, folder_digest
from loraxs_search.registry.reads import ADAPTER, KIND, StoreReader
from loraxs_search.versions import installed

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
SHOWN = "loraxs.champion"  # in sight: the champion
SUMMARY = "mlflow.loraxs.champion"  # the same for lists
DIGEST, EVIDENCE, MODEL_ID, FORMAT = "loraxs.digest", "loraxs.evidence", "loraxs.model_id", "loraxs.format"
MAX_TAG = 5000  # characters that a tag may have in MLflow's tables
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ALIAS = re.compile(r"[A-Za-z0-9_-]+")
_EXPERIMENT = "loraxs-search adapters"
_NOTE = "Adapters that were promoted here and trained elsewhere: their runs are in another store."
_MODEL_VERSIONS = "mlflow.modelVersions"


# ---- names -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class AdapterName:
    """A version of a task's adapters, by number or by alias.

    Raises:
        RegistryError: the registry cannot hold such a task name: it is too long, or holds characters other than
            letters, digits, `_`, `.` and `-`.
    """

    task: str
    alias: str | None = CHAMPION
    version: int | None = None

    def __post_init__(self) -> None:
        if not _TASK.fullmatch(self.task) or len(self.task) > MAX_NAME:
            raise RegistryError(
                f"`task name` must start with a letter or digit and hold at most {MAX_NAME} letters, digits, _ . -, but"
                f" got {self.task!r}.",
                hint="`predict` takes a folder as it is, and `pull` the name of a task"
                if os.sep in self.task
                else "`loraxs-search ls` has every task",
            )

    @classmethod
    def parse(cls, name: str) -> AdapterName:
        """Read `TASK` (its champion), `TASK@alias` or `TASK:3`.

        Raises:
            RegistryError: the name has none of these forms.
        """
        hint = "write TASK, TASK@alias or TASK:3"
        task, at, alias = name.partition("@")
        if at:
            reserved = alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias)
            if not _ALIAS.fullmatch(alias) or reserved:
                law = "`alias` must be a name such as champion"
                raise RegistryError(f"{law}, but got {alias!r} in {name!r}.", hint=hint)
            return cls(task, alias)
        task, colon, version = name.partition(":")
        if not colon:
            return cls(task)
        if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            raise RegistryError(f"`version` must be a number from 1, but got {version!r} in {name!r}.", hint=hint)
        return cls(task, None, int(version))

    def __str__(self) -> str:
        return f"{self.task}:{self.version}" if self.version is not None else f"{self.task}@{self.alias}"


# ---- records ---------------------------------------------------------------------------------------------------------
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


@dataclass(frozen=True)
class TaskSummary:
    """A task and its champion; without a champion all but the task is empty.

    Args:
        score: The champion's test value of `metric`, as it was promoted.
        mean: Mean validation value of `metric` over the champion and the same recipe from other seeds.
        spread: Their sample standard deviation; None when there are no refits.
        promoted_at: ISO 8601.
        aliases: Alias to version, other champions included.
    """

    task: str
    version: int | None = None
    metric: str = ""
    score: float | None = None
    mean: float | None = None
    spread: float | None = None
    stored_bytes: int | None = None
    base_model: str = ""
    promoted_at: str = ""
    aliases: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, task: str, version: int, candidate: Candidate, decision: Decision) -> TaskSummary:
        """Return the line of a task whose champion is `version`."""
        over_seeds = seed_statistics(candidate).get(decision.metric)
        return cls(
            task=task,
            version=version,
            metric=decision.metric,
            score=candidate.test_metrics.get(decision.metric),
            mean=over_seeds.mean if over_seeds else None,
            spread=over_seeds.deviation if over_seeds else None,
            stored_bytes=candidate.stored_bytes,
            base_model=candidate.base_model,
            promoted_at=decision.at,
        )


def read_version(version: Any, model: Any) -> RegisteredAdapter:
    """Rebuild a record from MLflow's model version and its registered model.

    Raises:
        ForeignVersionError: something else registered it, or another version of this package.
    """
    tags, number = version.tags, int(version.version)
    try:
        check_format(int(tags[FORMAT]), f"version {number}")
        digest = tags[DIGEST]
        if not re.fullmatch(r"[0-9a-f]{64}", digest):  # it names a folder of the cache
            raise ValueError(f"`digest` must be 64 hex digits, but got {digest!r}")
        candidate, decision = (model.tags[tag] for tag in _record_names(digest))
        return RegisteredAdapter(
            task=version.name,
            version=number,
            aliases=tuple(sorted(alias for alias, own in model.aliases.items() if int(own) == number)),
            digest=digest,
            candidate=from_json(Candidate, candidate),
            decision=from_json(Decision, decision),
            source=version.source,
            run_id=version.run_id or None,
            evidence=tags.get(EVIDENCE),
            created_at=datetime.fromtimestamp(int(version.creation_timestamp) / 1000, UTC).isoformat("T", "seconds"),
        )
    except (KeyError, ValueError, IntegrityError) as error:
        raise ForeignVersionError(
            f"Version {number} of {version.name} must be an adapter that this loraxs-search reads: {error}.",
            hint=f"name another version; `loraxs-search rollback {version.name} --to N` makes one the champion",
        ) from error


def fitted(decision: Decision) -> str:
    """Return the decision as JSON short enough for a tag, the last reasons kept: they say what was decided.

    Of many slices, those that lose most are kept.
    """
    text, short = to_json(decision), decision
    while len(text) > MAX_TAG and short.slices:
        least = min(short.slices, key=lambda each: -math.inf if each.loss is None else each.loss)
        short = replace(short, slices=tuple(each for each in short.slices if each is not least))
        text = to_json(short)
    while len(text) > MAX_TAG and (short.reasons or short.seen):
        short = replace(short, reasons=short.reasons[1:], seen=short.seen if short.reasons else short.seen[:-20])
        left_out = f"({len(decision.reasons) - len(short.reasons)} more reasons)"
        text = to_json(replace(short, reasons=(left_out, *short.reasons)))
    return text


# ---- writing a version -----------------------------------------------------------------------------------------------
def register_version(
    store: StoreReader,
    folder: Path,
    manifest: Manifest,
    candidate: Candidate,
    decision: Decision,
    answers: bytes | None,
) -> Any:
    """Return the version of the task that holds `folder`, with its records, its answers and what MLflow loads.

    It is registered unless there is one with its digest. Records come first: no version lacks them, whenever this is
    killed. Its tags are what people look for in the UI.

    Args:
        answers: The file of its answers to the test rows; None if there is none.
    """
    from mlflow.exceptions import MlflowException

    client, task, digest = store.client, manifest.task.registered_name, folder_digest(folder)
    if store.model(task) is None:
        try:
            client.create_registered_model(task, tags={KIND: ADAPTER})
        except MlflowException:
            if store.model(task) is None:  # else MLflow's client has sent it twice
                raise
    for key, value in _record_tags(candidate, decision, digest).items():
        client.set_registered_model_tag(task, key, value)
    tags = {f"test.{name}": f"{value:.6g}" for name, value in candidate.test_metrics.items()}
    tags |= {f"validation.{name}": f"{value:.6g}" for name, value in candidate.validation_metrics.items()}
    tags |= {
        "loraxs.study": candidate.study,
        "trial_id": candidate.trial_id,
        "stored_bytes": str(candidate.stored_bytes),
        "loraxs.base_model": manifest.base_model.id,
        DIGEST: digest,
        FORMAT: str(ADAPTER_FORMAT),
    }
    version = _with_digest(client, task, digest)
    if version is None:
        version = _create_version(client, store.uri, folder, manifest, tags)
    else:
        for key, value in tags.items():
            client.set_model_version_tag(task, version.version, key, value)
    if answers is not None:
        from loraxs_search.registry.evidence import FILE

        evidence = hashlib.sha256(answers).hexdigest()
        if version.tags.get(EVIDENCE) != evidence:
            with tempfile.TemporaryDirectory() as place:
                (Path(place) / "evidence").mkdir()
                (Path(place) / "evidence" / FILE).write_bytes(answers)
                client.log_model_artifacts(version.tags[MODEL_ID], place)
            client.set_model_version_tag(task, version.version, EVIDENCE, evidence)
    if MLMODEL not in store.list_files(version.source):
        _add_mlflow_model(client, version, manifest)
    return version


def remove_version(store: StoreReader, task: str, digest: str, version: RegisteredAdapter | None) -> None:
    """Delete a version with its aliases, and its records; what is gone already stays so.

    Args:
        digest: The version's: a number may be given again.
        version: The one that has its number now.
    """
    client = store.client
    if version is not None and version.digest == digest:
        for alias in version.aliases:
            client.delete_registered_model_alias(task, alias)
        client.delete_model_version(task, str(version.version))
    model = store.model(task)
    # MLflow's client repeats a call that a slow server did not answer: two versions may have one folder.
    if model is not None and _with_digest(client, task, digest) is None:
        for tag in set(_record_names(digest)) & model.tags.keys():
            client.delete_registered_model_tag(task, tag)


def _record_names(digest: str) -> tuple[str, str]:
    """Return the tags of a registered model that hold the candidate and the decision of a version."""
    return f"mlflow.loraxs.adapter.{digest[:32]}.candidate", f"mlflow.loraxs.adapter.{digest[:32]}.decision"


def _record_tags(candidate: Candidate, decision: Decision, digest: str) -> dict[str, str]:
    """Return the tags of the registered model that hold the records of a new version.

    Of the candidate its own scores stay whole, and what is beside them is shortened until it fits.
    """
    text, limit = to_json(candidate), MAX_TAG
    while len(text) > MAX_TAG and limit > 1:
        limit //= 2
        baselines = (
            replace(
                each,
                answer=each.answer[:limit] if isinstance(each.answer, str) else each.answer,
                failed=each.failed[:limit],
            )
            for each in candidate.baselines
        )
        refits = (
            replace(
                each,
                validation_metrics={name: float(f"{x:.6g}") for name, x in each.validation_metrics.items()},
                failed=each.failed[:limit],
            )
            for each in candidate.refits[: max(1, limit // 25)]
        )
        earlier = candidate.earlier_finalists[: limit // 25]
        short = replace(candidate, baselines=tuple(baselines), refits=tuple(refits), earlier_finalists=earlier)
        text = to_json(short)
    return dict(zip(_record_names(digest), (text, fitted(decision)), strict=True))


def _with_digest(client: MlflowClient, task: str, digest: str) -> Any | None:
    """Return a version of the task that holds the folder of this content address; None if there is none."""
    found = client.search_model_versions(f"name = '{task}' and tags.`{DIGEST}` = '{digest}'", max_results=1)
    return found[0] if found else None


def _create_version(client: MlflowClient, uri: str, folder: Path, manifest: Manifest, tags: Mapping[str, str]) -> Any:
    """Register a folder, as the model that the search has logged, else as one that is logged now."""
    from mlflow.exceptions import MlflowException

    task = manifest.task.registered_name
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    logged = client.search_logged_models(experiments, f"tags.`{DIGEST}` = '{tags[DIGEST]}'")
    model = next((each for each in logged if str(each.status) == "READY"), None)  # that the search has logged
    if model is None:
        run_id, experiment_id = manifest.run_id, None
        if run_id is not None:
            try:
                experiment_id = client.get_run(run_id).info.experiment_id
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                run_id = None  # it is in another store
        model = client.create_logged_model(
            experiment_id or ensure_experiment(client, uri, _EXPERIMENT, _NOTE),
            name=f"{task}-{manifest.trial_id}".replace(".", "-"),
            source_run_id=run_id,
            tags={"loraxs.study": manifest.study, "trial_id": manifest.trial_id, DIGEST: tags[DIGEST]},
            model_type="LORAXS",
        )
        client.log_model_artifacts(model.model_id, str(folder))
        model = client.finalize_logged_model(model.model_id, "READY")
    is_embedded = artifact_root(uri) is not None
    made = client.create_model_version(
        task,
        # Not models:/ID: the embedded store would look that up in the process-wide default store, which is another.
        source=model.artifact_location,
        run_id=model.source_run_id or None,  # a server with accounts forbids an empty one
        tags={**tags, MODEL_ID: model.model_id},
        # A server wants to know whose the artifacts are; the embedded store would again look elsewhere.
        model_id=None if is_embedded else model.model_id,
    )
    if is_embedded:  # a server notes the version on the logged model by itself: the UI then links the two
        listed = [*json.loads(model.tags.get(_MODEL_VERSIONS, "[]")), {"name": task, "version": int(made.version)}]
        client.set_logged_model_tags(model.model_id, {_MODEL_VERSIONS: json.dumps(listed)})
    return made


# ---- what MLflow loads and serves ------------------------------------------------------------------------------------
LOADER, FLAVOR = "loraxs_search.mlflow_flavor", "loraxs_search"  # every `MLmodel` out there has these names
# Without this package: no index has it, and whoever took its name there would have their code run.
_PINNED = ("torch", "transformers", "peft", "mlflow", "numpy", "pandas", "safetensors", "tokenizers")


def _add_mlflow_model(client: MlflowClient, version: Any, manifest: Manifest) -> None:
    """Lay an `MLmodel` and its companions beside a version's adapter.

    `MLmodel` names the loader, and nothing is pickled. The adapter's own files stay as they are, and `pull` fetches
    none of these.
    """
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    from loraxs_search.tasks.kinds import kind_of

    kind, model_id = kind_of(manifest.task), version.tags[MODEL_ID]
    types: dict[str, AnyType | str] = {
        "label": "string",
        "score": "double",
        "probabilities": AnyType(),
        "entities": AnyType(),
    }
    model = Model(run_id=version.run_id or None, model_id=model_id)
    model.add_flavor(
        FLAVOR,
        task=manifest.task.registered_name,
        kind=manifest.task.kind,
        method=manifest.hyperparameters.method,
        base_model=manifest.base_model.id,
        digest=version.tags[DIGEST],
    )
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model"
        pyfunc.save_model(
            str(made),
            loader_module=LOADER,
            mlflow_model=model,
            signature=ModelSignature(
                Schema([ColSpec("string", name) for name in kind.question_columns]),
                Schema([ColSpec(own, name, required=False) for name, own in types.items()]),
            ),
            input_example=[dict(zip(kind.question_columns, kind.example, strict=True))],
            # Without local labels, as in 2.9.1+cpu: package indexes do not have those.
            pip_requirements=[f"{name}=={version.partition('+')[0]}" for name, version in installed(_PINNED).items()],
            model_config={"device": "cpu"},
        )
        model.model_size_bytes = manifest.size.stored_bytes  # MLflow has measured these files instead
        model.save(str(made / MLMODEL))
        for path in made.iterdir():
            if path.name not in MLFLOW_FILES:  # MLflow adds what it finds in the working directory, such as uv.lock
                path.unlink()
        last = (made / MLMODEL).rename(Path(folder) / MLMODEL)
        client.log_model_artifacts(model_id, str(made))
        client.log_model_artifact(model_id, str(last))  # once it is there, the others are
