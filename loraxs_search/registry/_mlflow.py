"""How the registry is asked: MLflow's client, with its errors as ours, and plain requests where they are quicker.

`pull` and `ls` ask a server's REST API and fetch the files that it hands out: importing MLflow takes longer.
"""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from loraxs_search.errors import IntegrityError, RegistryUnreadableError, TrackingError
from loraxs_search.home import disk_faults
from loraxs_search.mlflow_uri import check_server, get, prepare_environment, redact, sqlite_path
from loraxs_search.registry.names import AdapterName

if TYPE_CHECKING:
    import requests
    from mlflow import MlflowClient


def exists(uri: str) -> bool:
    """Whether the store exists: a server, or a database file. Creates nothing."""
    path = sqlite_path(uri)
    return path is None or path.exists()


def connect(uri: str) -> MlflowClient:
    """Return a client for runs and models of the store at `uri`, independent of the environment.

    Raises:
        TrackingError: no server answers.
        RegistryUnreadableError: the embedded database does not exist.
    """
    path = sqlite_path(uri)
    if path is None:
        check_server(uri)
    elif not path.exists():
        raise RegistryUnreadableError(
            f"There is no registry at {path}: nothing has been recorded yet.",
            hint="run `loraxs-search launch SPACE`, or name a server with --tracking-uri",
        )
    with speaking(uri):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def speaking(uri: str) -> Iterator[None]:
    """Turn MLflow's exceptions into our errors, without passwords.

    Raises:
        TrackingError: a server answers that it cannot.
        RegistryUnreadableError: anything else.
    """
    prepare_environment()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if sqlite_path(uri) is None and error.get_http_status_code() >= 500:
            raise TrackingError(
                f"The MLflow server at {redact(uri)} must answer, but: {redact(str(error))}",
                hint="see its log: its database or its artifact store may be away",
            ) from error
        old_schema = "out-of-date database schema" in str(error)
        raise RegistryUnreadableError(
            f"The registry at {redact(uri)} failed: {redact(str(error))}",
            hint=f"run `mlflow db upgrade {redact(uri)}` after a backup" if old_schema else None,
        ) from error


def is_missing(error: Exception) -> bool:
    """Whether an MLflow error says that a model, version or alias does not exist."""
    code = getattr(error, "error_code", None)
    # A missing alias is reported as an invalid parameter.
    return code == "RESOURCE_DOES_NOT_EXIST" or (code == "INVALID_PARAMETER_VALUE" and "not found" in str(error))


def is_denied(error: Exception) -> bool:
    """Whether an MLflow error says that the user may not; MLflow also says so of versions of a model that is not."""
    return getattr(error, "error_code", None) == "PERMISSION_DENIED"


@dataclass(frozen=True)
class Listed:
    """A file, or a folder, as the store lists it; a store that does not know a file's size says 0."""

    name: str
    num_bytes: int
    is_dir: bool


def list_files(uri: str, source: str) -> list[Listed]:
    """Return what lies in `source`; nothing where nothing has been logged yet."""

    def ask() -> list[Listed]:
        files = _get(uri, _FILES, {"path": _handed_out(source)}, _PAGE_TIMEOUT_S).get("files", [])
        return [Listed(str(f["path"]), int(f.get("file_size", 0)), bool(f.get("is_dir"))) for f in files]

    def by_client() -> list[Listed]:
        from mlflow.artifacts import list_artifacts

        listed = list_artifacts(artifact_uri=source, tracking_uri=uri)
        return [Listed(PurePosixPath(file.path).name, file.file_size or 0, file.is_dir) for file in listed]

    return plainly(uri, ask, by_client)


def fetch_file(uri: str, source: str, name: str, folder: Path, max_bytes: int) -> Path:
    """Fetch a file of `source` into `folder`, and return it there.

    Raises:
        IntegrityError: it has more than `max_bytes`; a plain download ends there, MLflow's is measured afterwards.
        HomeError: `folder` cannot be written.
    """

    def ask() -> Path:
        _fetch_plainly(uri, source, name, folder / name, max_bytes)
        return folder / name

    def by_client() -> Path:
        from mlflow.artifacts import download_artifacts

        place = f"{source.rstrip('/')}/{name}"
        path = Path(download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=uri))
        _check_size(uri, name, path.stat().st_size, max_bytes)
        return path

    return plainly(uri, ask, by_client)


_T = TypeVar("_T")
_FILES, _SCHEME = "mlflow-artifacts/artifacts", "mlflow-artifacts:"
_TIMEOUT_S, _PAGE_TIMEOUT_S = 5.0, 20.0
_CHUNK_BYTES = 2**16
_FAILED, _NOT_FOUND, _MISSING = 400, 404, "RESOURCE_DOES_NOT_EXIST"
_OTHER_WAYS_IN = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_WORKSPACE")


def plainly(uri: str, ask: Callable[[], _T], by_client: Callable[[], _T], *, when: bool = True) -> _T:
    """Return what a server answers to `ask`; where there is none, or it does not answer, what MLflow's client finds.

    Args:
        ask: Raises an `OSError`, as all of `requests` are, a `ValueError` or a `KeyError` where the server has no such
            thing or wants to be asked in another way: MLflow's client finds out which.
        when: Whether plain requests are worth it: a client that is there already is as quick.
    Raises:
        RegistryError: MLflow's client has failed.
    """
    if when and sqlite_path(uri) is None and not any(os.environ.get(name) for name in _OTHER_WAYS_IN):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return ask()
    with speaking(uri):
        return by_client()


# ---- asked of a server; they raise what `plainly` takes from `ask` ---------------------------------------------------
def find_version(uri: str, name: AdapterName) -> Any:
    """Return a model version with the attributes of MLflow's own."""
    which = {"alias": name.alias or ""} if name.version is None else {"version": str(name.version)}
    call = "mlflow/registered-models/alias" if name.version is None else "mlflow/model-versions/get"
    return _version(_get(uri, call, {"name": name.task} | which)["model_version"])


def find_model(uri: str, name: str) -> Any:
    """Return a registered model with the attributes of MLflow's own."""
    return _model(_get(uri, "mlflow/registered-models/get", {"name": name})["registered_model"])


def find_models(uri: str, only: str | None, size: int, token: str | None) -> Any:
    """Return a page of registered models by name, with the attributes of MLflow's own."""
    query = {"max_results": str(size), "order_by": "name ASC", "filter": only or "", "page_token": token or ""}
    given = {key: value for key, value in query.items() if value}
    return _Page(_get(uri, "mlflow/registered-models/search", given, _PAGE_TIMEOUT_S))


def find_experiment(uri: str, name: str) -> Any | None:
    """Return an experiment with the tags of MLflow's own; None when there is none."""
    answer = _get(uri, "mlflow/experiments/get-by-name", {"experiment_name": name}, may_lack=True)
    return None if answer is None else SimpleNamespace(tags=_tags(answer["experiment"]))


def _fetch_plainly(uri: str, source: str, name: str, target: Path, max_bytes: int) -> None:
    """Write a file that a server hands out itself, and no more of it than it may have: a server can send without end.

    Raises:
        IntegrityError: the server sends more than `max_bytes`.
        HomeError: `target` cannot be written, which no other way to ask would change.
    """
    call = f"{_FILES}/{urllib.parse.quote(f'{_handed_out(source)}/{name}')}"
    num_bytes = 0
    with _open(uri, call, {}, _PAGE_TIMEOUT_S, stream=True) as answer, disk_faults(target), target.open("wb") as file:
        for chunk in answer.iter_content(_CHUNK_BYTES):  # raises where fewer bytes come than were announced
            num_bytes += len(chunk)
            _check_size(uri, name, num_bytes, max_bytes)
            file.write(chunk)


def _check_size(uri: str, name: str, num_bytes: int, max_bytes: int) -> None:
    """Refuse a file of which more has come than it may have.

    Raises:
        IntegrityError: `num_bytes` is more than `max_bytes`.
    """
    if num_bytes > max_bytes:
        raise IntegrityError(
            f"{name} must have at most {max_bytes:,} bytes, but {num_bytes:,} came from {redact(uri)}.",
            hint="tell whoever keeps the registry",
        )


def _handed_out(source: str) -> str:
    """Return the place of files that a server hands out itself."""
    place = source.removeprefix(_SCHEME).strip("/")
    if not source.startswith(_SCHEME) or source.startswith(f"{_SCHEME}//"):  # another server's
        raise ValueError(f"{source} is not the server's own")
    return place


class _Page(list[Any]):
    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__(_model(model) for model in answer.get("registered_models", []))
        self.token: str | None = answer.get("next_page_token")


def _get(uri: str, call: str, query: Mapping[str, str], timeout_s: float = _TIMEOUT_S, may_lack: bool = False) -> Any:
    """Return what a server answers; None if `may_lack` and it says that there is no such thing."""
    with _open(uri, call, query, timeout_s, may_lack=may_lack) as answer:
        value = answer.json()
        if answer.status_code < _FAILED:
            return value
        if value["error_code"] == _MISSING:
            return None
    raise ValueError(value["error_code"])


def _open(
    uri: str, call: str, query: Mapping[str, str], timeout_s: float, stream: bool = False, may_lack: bool = False
) -> requests.Response:
    answer = get(f"{uri}/api/2.0/{call}", params=query, timeout_s=timeout_s, stream=stream)
    try:
        if not (may_lack and answer.status_code == _NOT_FOUND):
            answer.raise_for_status()
    except OSError:
        answer.close()
        raise
    return answer


def _version(version: Mapping[str, Any]) -> Any:
    return SimpleNamespace(
        name=version["name"],
        version=version["version"],
        aliases=version.get("aliases", []),
        tags=_tags(version),
        source=version.get("source", ""),
        run_id=version.get("run_id"),
        creation_timestamp=version["creation_timestamp"],
    )


def _model(model: Mapping[str, Any]) -> Any:
    return SimpleNamespace(
        name=model["name"],
        creation_timestamp=model["creation_timestamp"],
        last_updated_timestamp=model["last_updated_timestamp"],
        tags=_tags(model),
        aliases={alias["alias"]: alias["version"] for alias in model.get("aliases", [])},
        latest_versions=[_version(version) for version in model.get("latest_versions", [])],
    )


def _tags(tagged: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in tagged.get("tags", [])}
