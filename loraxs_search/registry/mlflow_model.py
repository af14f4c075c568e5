"""What MLflow needs to load and serve a version: an `MLmodel` and its companions, beside the sealed adapter.

`MLmodel` names a loader, `loraxs_search.mlflow_flavor`, and nothing is pickled. `promote` writes it for each version
that it registers. The adapter's own files stay as they are, and `pull` fetches none of these.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import LoraxsError
from loraxs_search.records import Manifest
from loraxs_search.registry._mlflow import list_files
from loraxs_search.registry._versions import MODEL_ID
from loraxs_search.registry.manifest import MLFLOW_FILES, MLMODEL
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


@contextlib.contextmanager
def as_mlflow_errors() -> Iterator[None]:
    """Turn our errors into MLflow's, which its servers answer with status 400 and the message."""
    try:
        yield
    except LoraxsError as error:
        from mlflow.exceptions import MlflowException

        hint = f" ({error.hint})" if error.hint else ""
        raise MlflowException.invalid_parameter_value(f"{error.message}{hint}") from error
