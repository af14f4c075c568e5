"""What an MLflow store has: registered models, versions, files. Nothing here writes.

A read is a call of MLflow's REST API. A server is asked by plain requests, which have answered before MLflow is
imported. MLflow's client asks an embedded store, and a server that does not answer plain requests.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import IntegrityError, RegistryUnreadableError, TrackingError
from loraxs_search.home import disk_faults
from loraxs_search.mlflow_uri import check_server, get, prepare_environment, redact, sqlite_path

if TYPE_CHECKING:
    import requests
    from mlflow import MlflowClient

KIND, ADAPTER = "loraxs.kind", "adapter"  # a tag, in sight: what a registered model of ours is
_TIMEOUT_S, _PAGE_TIMEOUT_S = 5.0, 20.0
_CHUNK_BYTES = 2**16
_MISSING = "RESOURCE_DOES_NOT_EXIST"
_OTHER_WAYS_IN = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_WORKSPACE")
_FILES, _SCHEME = "mlflow-artifacts/artifacts", "mlflow-artifacts:"
_MAX_PAGE = 1000  # MLflow's own limit
_OTHERS = 20  # factor sets and models of others among these, for which no second page is asked
_NEAR = 100

# The calls of the API that are made here, as MLflow's client makes them.
_BY_CLIENT: Mapping[str, Callable[..., Any]] = {
    "experiments/get-by-name": lambda client, experiment_name: client.get_experiment_by_name(experiment_name),
    "registered-models/get": lambda client, name: client.get_registered_model(name),
    "model-versions/get": lambda client, name, version: client.get_model_version(name, version),
    "registered-models/search": lambda client, filter, max_results, order_by, page_token: (
        client.search_registered_models(filter, max_results, [order_by], page_token or None)
    ),
    "model-versions/search": lambda client, filter, max_results, order_by, page_token: client.search_model_versions(
        filter, max_results, [order_by], page_token or None
    ),
}
# Where a server wants to be asked in another way, `requests` raises an OSError, or its answer is not what is read here.
_NOT_PLAIN = (OSError, ValueError, KeyError, AttributeError)


@contextlib.contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's exceptions into our errors, without passwords.

    Raises:
        TrackingError: a server answers that it cannot.
        RegistryUnreadableError: anything else.
    """
    try:
        yield
    except Exception as error:
        known = sys.modules.get("mlflow.exceptions")
        if known is None or not isinstance(error, known.MlflowException):
            raise
        if sqlite_path(uri) is None and error.get_http_status_code() >= 500:
            raise TrackingError(
                f"The MLflow server at {uri} must answer, but: {redact(str(error))}",
                hint="see its log: its database or its artifact store may be away",
            ) from error
        old_schema = "out-of-date database schema" in str(error)
        raise RegistryUnreadableError(
            f"The registry at {uri} failed: {redact(str(error))}",
            hint=f"run `mlflow db upgrade {uri}` after a backup" if old_schema else None,
        ) from error


class StoreReader:
    """The MLflow store at `uri`, independent of the environment.

    Models and versions have the attributes of MLflow's entities. Where the store does not exist yet, it has none.

    Raises:
        TrackingError: the server does not answer.
        RegistryUnreadableError: the store cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    def exists(self) -> bool:
        """Whether the store exists: a server, or a database file."""
        path = sqlite_path(self.uri)
        return path is None or path.exists()

    def check_exists(self) -> None:
        """Refuse an embedded store whose database is gone, which else reads as a registry without tasks."""
        if not self.exists:
            raise RegistryUnreadableError(
                f"There is no registry at {self.uri}: nothing has been recorded yet.",
                hint="run `loraxs-search launch SPACE`, or name a server with --tracking-uri",
            )

    @functools.cached_property
    def client(self) -> MlflowClient:
        """MLflow's client for runs and models."""
        if sqlite_path(self.uri) is None:
            check_server(self.uri)
        self.check_exists()
        prepare_environment()
        with mlflow_errors(self.uri):
            from mlflow import MlflowClient

            return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def model(self, name: str) -> Any | None:
        """Return a registered model; None when there is none."""
        return self._read("registered-models/get", name=name) if self.exists else None

    def version(self, name: str, number: int) -> Any | None:
        """Return a version of a registered model; None when there is none."""
        return self._read("model-versions/get", name=name, version=str(number))

    def versions(self, name: str) -> Iterator[Any]:
        """Yield all versions of a registered model, newest first."""
        return self._search("model-versions/search", f"name = '{name}'", _NEAR, "version_number DESC")

    def models(self, limit: int | None = None) -> Iterator[Any]:
        """Yield the registered models of our adapters, by name; the first `limit` of them.

        Without a filter MLflow reads a page along its index, with one the tags of all models.
        """
        size = _MAX_PAGE if limit is None else min(limit + _OTHERS, _MAX_PAGE)
        found = self._search("registered-models/search", "", size, "name ASC") if self.exists else iter(())
        return itertools.islice((model for model in found if model.tags.get(KIND) == ADAPTER), limit)

    def near(self, task: str) -> list[str]:
        """Return names of tasks to suggest for an unknown one: those with the same beginning, and the first ones."""
        names = set[str]()
        for only in (f"name ILIKE '{task[:3]}%'", "") if self.exists else ():
            page = itertools.islice(self._search("registered-models/search", only, _NEAR, "name ASC"), _NEAR)
            names.update(model.name for model in page if model.tags.get(KIND) == ADAPTER)
        return sorted(names)

    def experiment_tags(self, name: str) -> dict[str, str]:
        """Return the tags of an experiment; none when there is no such experiment."""
        found = self._read("experiments/get-by-name", experiment_name=name)
        return {} if found is None else dict(found.tags)

    # ---- files -------------------------------------------------------------------------------------------------------
    def list_files(self, source: str) -> dict[str, int | None]:
        """Return the size of each file in `source`, by name; 0 where the store does not know it, None of a folder.

        Nothing lies there where nothing has been logged yet.
        """
        if self._is_plain:
            with contextlib.suppress(*_NOT_PLAIN), self._open(_FILES, {"path": _handed_out(source)}) as answer:
                answer.raise_for_status()
                files = answer.json().get("files", [])
                return {str(f["path"]): None if f.get("is_dir") else int(f.get("file_size", 0)) for f in files}
        prepare_environment()
        with mlflow_errors(self.uri):
            from mlflow.artifacts import list_artifacts

            listed = list_artifacts(artifact_uri=source, tracking_uri=self.uri)
        return {PurePosixPath(file.path).name: None if file.is_dir else file.file_size or 0 for file in listed}

    def fetch_file(self, source: str, name: str, folder: Path, max_bytes: int) -> Path:
        """Fetch a file of `source` into `folder`, and return it there.

        Raises:
            IntegrityError: it has more than `max_bytes`. A server can send without end: a plain download ends there,
                MLflow's is measured afterwards.
            HomeError: `folder` cannot be written.
        """
        path, num_bytes = folder / name, 0
        if self._is_plain:
            with contextlib.suppress(*_NOT_PLAIN):
                call = f"{_FILES}/{urllib.parse.quote(f'{_handed_out(source)}/{name}')}"
                with self._open(call, {}, stream=True) as answer, disk_faults(path), path.open("wb") as file:
                    answer.raise_for_status()
                    for chunk in answer.iter_content(_CHUNK_BYTES):  # raises where fewer bytes come than were announced
                        num_bytes += len(chunk)
                        if num_bytes > max_bytes:
                            break
                        file.write(chunk)
                    else:
                        return path
        if num_bytes <= max_bytes:
            prepare_environment()
            with mlflow_errors(self.uri):
                from mlflow.artifacts import download_artifacts

                place = f"{source.rstrip('/')}/{name}"
                path = Path(download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=self.uri))
            num_bytes = path.stat().st_size
        if num_bytes > max_bytes:
            raise IntegrityError(
                f"{name} must have at most {max_bytes:,} bytes, but {num_bytes:,} came from {self.uri}.",
                hint="tell whoever keeps the registry",
            )
        return path

    # ---- calls -------------------------------------------------------------------------------------------------------
    @property
    def _is_plain(self) -> bool:
        """Whether the store is a server that may answer plain requests."""
        return sqlite_path(self.uri) is None and not any(os.environ.get(name) for name in _OTHER_WAYS_IN)

    def _read(self, call: str, **query: Any) -> Any:
        """Return what the store answers: an entity, None if there is none, or a page and the token of the next one."""
        part, _, verb = call.partition("/")
        if self._is_plain:
            given = {name: str(value) for name, value in query.items() if value}
            timeout_s, entities = _PAGE_TIMEOUT_S if verb == "search" else _TIMEOUT_S, part.replace("-", "_")
            with contextlib.suppress(*_NOT_PLAIN), self._open(f"mlflow/{call}", given, timeout_s) as answer:
                value = json.loads(answer.content, object_hook=_entity)
                if answer.ok and verb == "search":
                    return getattr(value, entities, []), getattr(value, "next_page_token", "") or ""
                if answer.ok:
                    return getattr(value, entities.removesuffix("s"))
                if value.error_code == _MISSING:
                    return None
        with mlflow_errors(self.uri):
            try:
                found = _BY_CLIENT[call](self.client, **query)
            except Exception as error:
                if getattr(error, "error_code", None) == _MISSING:
                    return None
                raise
        return (list(found), found.token or "") if verb == "search" else found

    def _search(self, call: str, only: str, size: int, order: str) -> Iterator[Any]:
        """Yield what a search finds, page after page."""
        token: str | None = None
        while token != "":
            page, token = self._read(call, filter=only, max_results=size, order_by=order, page_token=token or "")
            yield from page

    def _open(
        self, call: str, query: Mapping[str, str], timeout_s: float = _PAGE_TIMEOUT_S, stream: bool = False
    ) -> requests.Response:
        return get(f"{self.uri}/api/2.0/{call}", params=query, timeout_s=timeout_s, stream=stream)


def _entity(fields: dict[str, Any]) -> SimpleNamespace:
    """Return an object of MLflow's JSON with the attributes of its entities: tags and aliases are mappings."""
    tags = {tag.key: getattr(tag, "value", "") for tag in fields.get("tags", ())}
    aliases = {each.alias: each.version for each in fields.get("aliases", ()) if not isinstance(each, str)}
    absent: dict[str, Any] = {"run_id": None, "source": "", "description": "", "latest_versions": []}
    return SimpleNamespace(**absent | fields | {"tags": tags, "aliases": aliases})


def _handed_out(source: str) -> str:
    """Return the place of files that a server hands out itself."""
    place = source.removeprefix(_SCHEME).strip("/")
    if not source.startswith(_SCHEME) or source.startswith(f"{_SCHEME}//"):  # another server's
        raise ValueError(f"{source} is not the server's own")
    return place
