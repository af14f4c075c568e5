"""Where the MLflow store is, requests to a server, and its client.

Both rooms that speak MLflow need this before they pay for importing it, or instead. Requests go through `requests`, as
MLflow's own client does: proxies, certificates (REQUESTS_CA_BUNDLE), ~/.netrc and the account are then those of that
client, and what works here works there. It is imported with the first request, so that nothing else pays for it.
"""

from __future__ import annotations

import logging
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import TrackingError
from loraxs_search.home import home

if TYPE_CHECKING:
    import requests
    from mlflow import MlflowClient


ENV_URI, ENV_USER, ENV_PASSWORD = "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_SQLITE = "sqlite:///"
_SERVER = ("http://", "https://")
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own defaults (7 tries, 120 s each) hold a caller for minutes when a server is gone.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is data
}


def resolve_uri(tracking_uri: str | None = None) -> str:
    """Return the store's address: the argument, else `MLFLOW_TRACKING_URI`, else SQLite in the state folder.

    It holds no account, and may be stored and shown.

    Raises:
        TrackingError: the address is neither `sqlite:///FILE` nor `http(s)://SERVER`, or holds an account.
    """
    uri = (tracking_uri or os.environ.get(ENV_URI) or f"{_SQLITE}{home() / 'mlflow.db'}").strip()
    if uri.startswith(_SERVER):
        if parts_of(uri) is None:
            raise TrackingError(
                f"`tracking URI` must be http(s)://SERVER without user and password, but got {shown(uri)}.",
                hint=f"leave them out and set {ENV_USER} and {ENV_PASSWORD}",
            )
        return uri.rstrip("/")
    if uri.startswith(_SQLITE) and uri not in (_SQLITE, f"{_SQLITE}:memory:"):
        return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).expanduser().absolute()}"
    raise TrackingError(
        f"`tracking URI` must be sqlite:///FILE or http(s)://SERVER, but got {shown(uri)}.",
        hint="to keep runs in another database, start `mlflow server --backend-store-uri ...` and give its address",
    )


def sqlite_path(uri: str) -> Path | None:
    """Return the database file of an embedded store; None for a server."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def artifact_root(uri: str) -> Path | None:
    """Return the folder beside an embedded database that holds its artifacts; a server keeps its own."""
    path = sqlite_path(uri)
    return path.parent / "artifacts" if path else None


def parts_of(uri: str) -> urllib.parse.SplitResult | None:
    """Return the parts of an address; None if it cannot be read, or may hold an account."""
    try:
        parts = urllib.parse.urlsplit(uri)
        _ = parts.port
    except ValueError:
        return None
    return None if re.search(r"[@\t\r\n]", uri) else parts


def shown(uri: str) -> str:
    """Return an address for a message that refuses it, without anything that may be an account."""
    return "one with an account (not shown)" if "@" in uri else repr(uri)


def redact(text: str) -> str:
    """Return `text` with the user and password of every address in it replaced by `***`."""
    return re.sub(r"://[^\s'\"]+@", "://***@", text)


def prepare_environment() -> None:
    """Set MLflow's defaults for this process before it is imported; what the user has set stays."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # It logs each database error with its traceback; whoever called tells the error, in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


# OpenSSL's codes for a certificate that nobody known here has signed; not for one that is old, or of another name.
_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
_CERTIFICATE, _INSECURE = "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS"  # MLflow's own


def get(
    url: str, *, timeout_s: float, params: Mapping[str, str] | None = None, stream: bool = False
) -> requests.Response:
    """Return what a server answers, of whatever status.

    The account of MLflow's variables goes along, but not to another server that this one sends on to.

    Args:
        timeout_s: How long connecting, and each wait for the next bytes, may take.
        stream: Leave the body to be read from the response, which the caller closes.
    Raises:
        requests.RequestException: nothing that is an answer came; an `OSError`.
    """
    import requests
    from requests.auth import HTTPBasicAuth

    user, password = os.environ.get(ENV_USER, ""), os.environ.get(ENV_PASSWORD, "")
    insecure = os.environ.get(_INSECURE, "").lower()
    return requests.get(
        url,
        params=params,
        # Bytes, as MLflow sends them: `requests` would take them for Latin-1.
        auth=HTTPBasicAuth(user.encode(), password.encode()) if user else None,
        verify=False if insecure in ("true", "1") else os.environ.get(_CERTIFICATE) or True,
        timeout=timeout_s,
        stream=stream,
    )


def check_server(uri: str, *, timeout_s: float = 5.0) -> None:
    """Ask a server whether it is alive.

    Raises:
        TrackingError: no MLflow server answers at `uri` within `timeout_s`.
    """
    hint = f"start it, or check --tracking-uri and {ENV_URI}; without either, runs go to a local database"
    try:
        status = get(f"{uri}/health", timeout_s=timeout_s).status_code
    except (OSError, ValueError) as error:
        below = _innermost(error)  # what the system says, without the layers of the client around it
        problem = str(below) or type(below).__name__
        if getattr(below, "verify_code", 0) in _UNKNOWN_AUTHORITY:
            hint = "name a file with the certificate of the authority that signed the server's in REQUESTS_CA_BUNDLE"
    else:
        # 401 and 403: a proxy that wants credentials. It is alive, and MLflow's client sends its own.
        if status < 400 or status in (401, 403):
            return
        problem = f"it answers /health with status {status}"
    raise TrackingError(f"The MLflow server at {uri} must be reachable, but: {redact(problem)}.", hint=hint)


def _innermost(error: Exception) -> BaseException:
    inner = error.args[0] if error.args else error
    inner = getattr(inner, "reason", inner)
    if not isinstance(inner, Exception):
        return error
    return inner.__cause__ or next((part for part in reversed(inner.args) if isinstance(part, Exception)), inner)


# ---- its client ------------------------------------------------------------------------------------------------------
def known_experiment(client: MlflowClient, uri: str, name: str) -> str | None:
    """Return the id of the experiment of this name; None if there is none.

    Raises:
        TrackingError: it was deleted, but MLflow still has it: it takes no runs, and seems to have none.
    """
    if (known := client.get_experiment_by_name(name)) is None:
        return None
    if known.lifecycle_stage != "active":
        raise TrackingError(
            f"The experiment {name!r} at {uri} must be active, but it was deleted.",
            hint="restore it in MLflow's UI, or delete it for good with `mlflow gc`",
        )
    return str(known.experiment_id)


def ensure_experiment(client: MlflowClient, uri: str, name: str, note: str = "") -> str:
    """Return the id of the experiment of this name, created with a description unless it exists.

    Raises:
        TrackingError: as `known_experiment`.
    """
    from mlflow.exceptions import MlflowException

    if (known := known_experiment(client, uri, name)) is not None:
        return known
    root, tags = artifact_root(uri), {"mlflow.note.content": note} if note else None
    try:
        return str(client.create_experiment(name, artifact_location=str(root) if root else None, tags=tags))
    except MlflowException:
        if (known := known_experiment(client, uri, name)) is None:  # else another process was quicker
            raise
        return known


def all_pages(search: Callable[..., Any], *arguments: Any, max_results: int = 1000, **options: Any) -> Iterator[Any]:
    """Yield all that a search of MLflow's client finds, page after page."""
    token: str | None = ""
    while token is not None:
        page = search(*arguments, max_results=max_results, page_token=token or None, **options)
        yield from page
        token = page.token or None
