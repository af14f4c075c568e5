"""What an MLflow store has: registered models, versions, files. Nothing here writes.

A server is asked by plain requests, which have answered before MLflow is imported. MLflow's client asks an embedded
store, and a server that does not answer plain requests.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import os
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from loraxs_search.errors import IntegrityError, RegistryUnreadableError, TrackingError
from loraxs_search.home import disk_faults
from loraxs_search.mlflow_uri import check_server, get, prepare_environment, redact, sqlite_path
from loraxs_search.registry.versions import ADAPTER, KIND

if TYPE_CHECKING:
    import requests
    from mlflow import MlflowClient

T = TypeVar("T")
_TIMEOUT_S, _PAGE_TIMEOUT_S = 5.0, 20.0
_CHUNK_BYTES = 2**16
_MISSING = "RESOURCE_DOES_NOT_EXIST"
_OTHER_WAYS_IN = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_WORKSPACE")
_FILES, _SCHEME = "mlflow-artifacts/artifacts", "mlflow-artifacts:"
_ADAPTERS = f"tags.`{KIND}` = '{ADAPTER}'"
_MAX_PAGE = 1000  # MLflow's own limit
_OTHERS = 20  # factor sets and models of others among these, for which no second page is asked
_NEAR = 100


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
                f"The MLflow server at {redact(uri)} must answer, but: {redact(str(error))}",
                hint="see its log: its database or its artifact store may be away",
            ) from error
        old_schema = "out-of-date database schema" in str(error)
        raise RegistryUnreadableError(
            f"The registry at {redact(uri)} failed: {redact(str(error))}",
            hint=f"run `mlflow db upgrade {redact(uri)}` after a backup" if old_schema else None,
        ) from error


@dataclass(frozen=True)
class Listed:
    """A file, or a folder, as the store lists it; a store that does not know a file's size says 0."""

    name: str
    num_bytes: int
    is_dir: bool


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
                f"There is no registry at {redact(self.uri)}: nothing has been recorded yet.",
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
        if not self.exists:
            return None
        return self._plainly(
            lambda: self._ask("registered-models/get", "registered_model", name=name),
            lambda: _or_none(lambda: self.client.get_registered_model(name)),
        )

    def version(self, name: str, number: int) -> Any | None:
        """Return a version of a registered model; None when there is none."""
        return self._plainly(
            lambda: self._ask("model-versions/get", "model_version", name=name, version=str(number)),
            lambda: _or_none(lambda: self.client.get_model_version(name, str(number))),
        )

    def versions(self, name: str) -> Iterator[Any]:
        """Yield all versions of a registered model, newest first."""
        only, order = f"name = '{name}'", "version_number DESC"

        def ask(token: str) -> tuple[list[Any], str]:
            return self._plainly(
                lambda: self._search("model_versions", only, _NEAR, order, token),
                lambda: _paged(self.client.search_model_versions(only, _NEAR, [order], token or None)),
            )

        token: str | None = None
        while token != "":
            page, token = ask(token or "")
            yield from page

    def models(self, limit: int | None = None) -> Iterator[Any]:
        """Yield the registered models of our adapters, by name; the first `limit` of them.

        Without a filter MLflow reads a page along its index, with one it reads the tags of all models, three times for
        each page. So a store is asked with the filter only where most of it is another user's, as its first page tells.
        """
        size = _MAX_PAGE if limit is None else min(limit + _OTHERS, _MAX_PAGE)
        yield from itertools.islice(self._models(size), limit)

    def _models(self, size: int) -> Iterator[Any]:
        only, token, first = "", "", self.exists
        while first or token:
            page, token = self._page(only, size, token)
            ours = [model for model in page if model.tags.get(KIND) == ADAPTER]
            if first and token and 2 * len(ours) < len(page):
                only = _ADAPTERS
                ours, token = self._page(only, size, "")
            yield from ours
            first = False

    def near(self, task: str) -> list[str]:
        """Return names of tasks to suggest for an unknown one: those with the same beginning, and the first ones."""
        pages = [self._page(only, _NEAR, "")[0] for only in (f"name ILIKE '{task[:3]}%'", "") if self.exists]
        return sorted({model.name for page in pages for model in page if model.tags.get(KIND) == ADAPTER})

    def _page(self, only: str, size: int, token: str) -> tuple[list[Any], str]:
        def by_client() -> tuple[list[Any], str]:
            # A page of an embedded store makes tens of thousands of objects, none of which is garbage.
            was_enabled = gc.isenabled()
            gc.disable()
            try:
                return _paged(self.client.search_registered_models(only, size, ["name ASC"], token or None))
            finally:
                if was_enabled:
                    gc.enable()

        return self._plainly(lambda: self._search("registered_models", only, size, "name ASC", token), by_client)

    def experiment_tags(self, name: str) -> dict[str, str]:
        """Return the tags of an experiment; none when there is no such experiment."""
        found = self._plainly(
            lambda: self._ask("experiments/get-by-name", "experiment", experiment_name=name),
            lambda: self.client.get_experiment_by_name(name),
        )
        return {} if found is None else dict(found.tags)

    # ---- files -------------------------------------------------------------------------------------------------------
    def list_files(self, source: str) -> list[Listed]:
        """Return what lies in `source`; nothing where nothing has been logged yet."""

        def by_client() -> list[Listed]:
            prepare_environment()
            from mlflow.artifacts import list_artifacts

            listed = list_artifacts(artifact_uri=source, tracking_uri=self.uri)
            return [Listed(PurePosixPath(file.path).name, file.file_size or 0, file.is_dir) for file in listed]

        def ask() -> list[Listed]:
            with self._open(_FILES, {"path": _handed_out(source)}) as answer:
                answer.raise_for_status()
                files = answer.json().get("files", [])
            return [Listed(str(f["path"]), int(f.get("file_size", 0)), bool(f.get("is_dir"))) for f in files]

        return self._plainly(ask, by_client)

    def fetch_file(self, source: str, name: str, folder: Path, max_bytes: int) -> Path:
        """Fetch a file of `source` into `folder`, and return it there.

        Raises:
            IntegrityError: it has more than `max_bytes`. A server can send without end: a plain download ends there,
                MLflow's is measured afterwards.
            HomeError: `folder` cannot be written.
        """
        path = folder / name

        def check_size(num_bytes: int) -> None:
            if num_bytes > max_bytes:
                raise IntegrityError(
                    f"{name} must have at most {max_bytes:,} bytes, but {num_bytes:,} came from {redact(self.uri)}.",
                    hint="tell whoever keeps the registry",
                )

        def ask() -> Path:
            call, num_bytes = f"{_FILES}/{urllib.parse.quote(f'{_handed_out(source)}/{name}')}", 0
            with self._open(call, {}, stream=True) as answer, disk_faults(path), path.open("wb") as file:
                answer.raise_for_status()
                for chunk in answer.iter_content(_CHUNK_BYTES):  # raises where fewer bytes come than were announced
                    num_bytes += len(chunk)
                    check_size(num_bytes)
                    file.write(chunk)
            return path

        def by_client() -> Path:
            prepare_environment()
            from mlflow.artifacts import download_artifacts

            place = f"{source.rstrip('/')}/{name}"
            fetched = Path(download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=self.uri))
            check_size(fetched.stat().st_size)
            return fetched

        return self._plainly(ask, by_client)

    # ---- plain requests ----------------------------------------------------------------------------------------------
    def _plainly(self, ask: Callable[[], T], by_client: Callable[[], T]) -> T:
        """Return what a server answers to `ask`; where there is none, or it does not answer, what the client finds.

        Args:
            ask: Raises an `OSError`, as all of `requests` are, or stumbles over an answer, where the server wants to be
                asked in another way: MLflow's client finds out which.
        """
        if sqlite_path(self.uri) is None and not any(os.environ.get(name) for name in _OTHER_WAYS_IN):
            with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
                return ask()
        with mlflow_errors(self.uri):
            return by_client()

    def _open(
        self, call: str, query: dict[str, str], timeout_s: float = _PAGE_TIMEOUT_S, stream: bool = False
    ) -> requests.Response:
        return get(f"{self.uri}/api/2.0/{call}", params=query, timeout_s=timeout_s, stream=stream)

    def _ask(self, call: str, what: str = "", timeout_s: float = _TIMEOUT_S, **query: str) -> Any:
        """Return what a server answers, as its client would have it; None if it says that there is no such thing.

        Args:
            what: The part of the answer that is wanted; by default all of it.
        """
        given = {name: value for name, value in query.items() if value}
        with self._open(f"mlflow/{call}", given, timeout_s) as answer:
            value = json.loads(answer.content, object_hook=_entity)
            if answer.ok:
                return getattr(value, what) if what else value
        if value.error_code == _MISSING:
            return None
        raise ValueError(value.error_code)

    def _search(self, what: str, only: str, size: int, order: str, token: str) -> tuple[list[Any], str]:
        query = {"filter": only, "max_results": str(size), "order_by": order, "page_token": token}
        answer = self._ask(f"{what.replace('_', '-')}/search", timeout_s=_PAGE_TIMEOUT_S, **query)
        return getattr(answer, what, []), getattr(answer, "next_page_token", "") or ""


def _entity(fields: dict[str, Any]) -> SimpleNamespace:
    """Return an object of MLflow's JSON with the attributes of its entities: tags and aliases are mappings."""
    tags = {tag.key: getattr(tag, "value", "") for tag in fields.get("tags", ())}
    aliases = {each.alias: each.version for each in fields.get("aliases", ()) if not isinstance(each, str)}
    absent: dict[str, Any] = {"run_id": None, "source": "", "description": "", "latest_versions": []}
    return SimpleNamespace(**absent | fields | {"tags": tags, "aliases": aliases})


def _or_none(find: Callable[[], Any]) -> Any | None:
    try:
        return find()
    except Exception as error:
        if getattr(error, "error_code", None) == _MISSING:
            return None
        raise


def _paged(page: Any) -> tuple[list[Any], str]:
    return list(page), page.token or ""


def _handed_out(source: str) -> str:
    """Return the place of files that a server hands out itself."""
    place = source.removeprefix(_SCHEME).strip("/")
    if not source.startswith(_SCHEME) or source.startswith(f"{_SCHEME}//"):  # another server's
        raise ValueError(f"{source} is not the server's own")
    return place
