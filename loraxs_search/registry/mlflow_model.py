"""What MLflow needs to load and serve a version: an `MLmodel` and its companions, beside the sealed adapter.

`MLmodel` names a loader, `loraxs_search.mlflow_flavor`, and nothing is pickled. `promote` writes it for each version
that it registers, and `upgrade` for versions that earlier releases registered. The adapter's own files stay as they
are, and `pull` fetches none of these.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraxs_search.errors import IntegrityError, LoraxsError, TrackingError
from loraxs_search.records import Manifest
from loraxs_search.registry import _versions
from loraxs_search.registry._mlflow import connect, exists, fetch_file, list_files, speaking
from loraxs_search.registry._versions import MODEL_ID
from loraxs_search.registry.manifest import MANIFEST, MAX_BYTES, MLFLOW_FILES, MLMODEL, folder_digest, read
from loraxs_search.registry.reader import RegistryReader, asking, models
from loraxs_search.versions import installed

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOADER = "loraxs_search.mlflow_flavor"  # every `MLmodel` out there has this name
FLAVOR = "loraxs_search"
# Without this package: no index has it, and whoever took its name there would have their code run.
_PINNED = ("torch", "transformers", "peft", "mlflow", "numpy", "pandas", "safetensors", "tokenizers")
_DIGEST = "loraxs.digest"


def add_mlflow_model(client: MlflowClient, uri: str, version: Any, manifest: Manifest) -> bool:
    """Lay MLflow's files beside a version's adapter, and return whether it had none.

    Args:
        version: MLflow's model version.
    """
    if _has_mlflow_model(uri, version):
        return False
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model"
        _write(made, manifest, version)
        for path in made.iterdir():
            if path.name not in MLFLOW_FILES:  # MLflow adds what it finds in the working directory, such as uv.lock
                path.unlink()
        last = (made / MLMODEL).rename(Path(folder) / MLMODEL)
        client.log_model_artifacts(version.tags[MODEL_ID], str(made))
        client.log_model_artifact(version.tags[MODEL_ID], str(last))  # once it is there, the others are
    return True


def _has_mlflow_model(uri: str, version: Any) -> bool:
    return any(file.name == MLMODEL for file in list_files(uri, version.source))


def _write(folder: Path, manifest: Manifest, version: Any) -> None:
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    from loraxs_search.tasks.kinds import kind_of

    kind = kind_of(manifest.task)
    types: dict[str, AnyType | str] = {
        "label": "string",
        "score": "double",
        "probabilities": AnyType(),
        "entities": AnyType(),
    }
    model = Model(run_id=version.run_id or None, model_id=version.tags[MODEL_ID])
    model.add_flavor(
        FLAVOR,
        task=manifest.task.registered_name,
        kind=manifest.task.kind,
        method=manifest.hyperparameters.method,
        base_model=manifest.base_model.id,
        digest=version.tags[_DIGEST],
    )
    pyfunc.save_model(
        str(folder),
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
    model.save(str(folder / MLMODEL))


# ---- versions from before --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Upgrade:
    """What became of a version.

    Args:
        name: `TASK:3`.
        outcome: `upgraded` stands also for what `dry_run` would do.
        reason: Why it was skipped, or failed.
    """

    name: str
    outcome: Literal["upgraded", "has one", "skipped", "failed"]
    reason: str = ""


def upgrade(uri: str, task: str | None = None, *, dry_run: bool = False) -> list[Upgrade]:
    """Give every version of our adapters an `MLmodel` that has none, and say what became of each version.

    Nothing else of a version changes. A version that cannot be upgraded does not hold up the others.

    Args:
        task: This task's versions alone.
    Raises:
        UnknownTaskError: the registry has no such task.
        TrackingError: the server does not answer.
    """
    if task is not None:
        RegistryReader(uri).check_known(task)
    if not exists(uri):
        return []
    with speaking(uri):
        client = connect(uri)
        names = [task] if task is not None else [model.name for model in models(asking(client))]
        found = [version for name in names for version in _versions.all_versions(client, name)]
    return [_upgraded(client, uri, version, dry_run) for version in sorted(found, key=_place)]


def _place(version: Any) -> tuple[str, int]:
    return version.name, int(version.version)


def _upgraded(client: MlflowClient, uri: str, version: Any, dry_run: bool) -> Upgrade:
    name = f"{version.name}:{version.version}"
    if _DIGEST not in version.tags or MODEL_ID not in version.tags:
        return Upgrade(name, "skipped", "it was not registered by loraxs-search")
    from loraxs_search.tasks.kinds import kind_of

    try:
        with speaking(uri):
            if _has_mlflow_model(uri, version):
                return Upgrade(name, "has one")
            manifest = _registered_manifest(uri, version)
            kind_of(manifest.task)
            if not dry_run:
                add_mlflow_model(client, uri, version, manifest)
    except TrackingError:
        raise
    except LoraxsError as error:  # it is this version's, such as a kind that is not installed here
        return Upgrade(name, "failed", error.message)
    return Upgrade(name, "upgraded")


def _registered_manifest(uri: str, version: Any) -> Manifest:
    """Return a version's manifest.

    Raises:
        IntegrityError: it is not what was registered.
    """
    with tempfile.TemporaryDirectory() as folder:
        fetch_file(uri, version.source, MANIFEST, Path(folder), MAX_BYTES[".json"])
        if folder_digest(Path(folder)) != version.tags[_DIGEST]:
            raise IntegrityError(f"{MANIFEST} is not what was registered.")
        return read(Path(folder))


@contextlib.contextmanager
def as_mlflow_errors() -> Iterator[None]:
    """Turn our errors into MLflow's, which its servers answer with status 400 and the message."""
    try:
        yield
    except LoraxsError as error:
        from mlflow.exceptions import MlflowException

        hint = f" ({error.hint})" if error.hint else ""
        raise MlflowException.invalid_parameter_value(f"{error.message}{hint}") from error
