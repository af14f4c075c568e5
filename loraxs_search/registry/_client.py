"""The client of the MLflow registry: connects in seconds, and reports errors as ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from loraxs_search.errors import RegistryError, TrackingError
from loraxs_search.mlflow_http import check_server
from loraxs_search.mlflow_uri import prepare_environment, redact, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient


def exists(uri: str) -> bool:
    """Whether the store exists: a server, or a database file. Creates nothing."""
    path = sqlite_path(uri)
    return path is None or path.exists()


def connect(uri: str) -> MlflowClient:
    """Return a client for runs and models of the store at `uri`, independent of the environment.

    Raises:
        TrackingError: no server answers.
        RegistryError: the embedded database does not exist.
    """
    path = sqlite_path(uri)
    if path is None:
        check_server(uri)
    elif not path.exists():
        raise RegistryError(
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
        RegistryError: anything else.
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
        raise RegistryError(
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
