"""Where the MLflow store is: its address, whether it answers, and how to name it without its password.

Plain standard library: both rooms that speak MLflow need this before they pay for importing it.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from loraxs_search.errors import TrackingError
from loraxs_search.home import home

ENV_URI = "MLFLOW_TRACKING_URI"
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

    Raises:
        TrackingError: the address is neither `sqlite:///FILE` nor `http(s)://SERVER`.
    """
    uri = (tracking_uri or os.environ.get(ENV_URI) or f"{_SQLITE}{home() / 'mlflow.db'}").strip()
    if uri.startswith(_SERVER):
        return uri.rstrip("/")
    if uri.startswith(_SQLITE) and uri not in (_SQLITE, f"{_SQLITE}:memory:"):
        return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).expanduser().absolute()}"
    raise TrackingError(
        f"`tracking URI` must be sqlite:///FILE or http(s)://SERVER, but got {redact(uri)!r}.",
        hint="to keep runs in another database, start `mlflow server --backend-store-uri ...` and give its address",
    )


def sqlite_path(uri: str) -> Path | None:
    """Return the database file of an embedded store; None for a server."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def artifact_root(uri: str) -> Path | None:
    """Return the folder beside an embedded database that holds its artifacts; a server keeps its own."""
    path = sqlite_path(uri)
    return path.parent / "artifacts" if path else None


def redact(text: str) -> str:
    """Return `text` with the user and password of every address in it replaced by `***`."""
    return re.sub(r"://[^/\s'\"]+@", "://***@", text)


def prepare_environment() -> None:
    """Set MLflow's defaults for this process before it is imported; what the user has set stays."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # It logs each database error with its traceback; whoever called tells the error, in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def check_server(uri: str, *, timeout_s: float = 5.0) -> None:
    """Ask a server whether it is alive.

    Raises:
        TrackingError: no MLflow server answers at `uri` within `timeout_s`.
    """
    try:
        with urllib.request.urlopen(request_to(f"{uri}/health"), timeout=timeout_s, context=tls_context(uri)):
            return
    except urllib.error.HTTPError as error:
        status = error.code
        error.close()
        if status in (401, 403):  # a proxy that wants credentials: alive; MLflow's client sends its own
            return
        problem = f"it answers /health with status {status}"
    except (OSError, ValueError) as error:
        problem = str(getattr(error, "reason", error)) or type(error).__name__
    raise TrackingError(
        f"The MLflow server at {redact(uri)} must be reachable, but: {redact(problem)}.",
        hint=f"start it, or check --tracking-uri and {ENV_URI}; without either, runs go to a local database",
    )


def request_to(url: str) -> urllib.request.Request:
    """Return a request with the user and password of the address or of MLflow's variables."""
    parts = urllib.parse.urlsplit(url)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    request = urllib.request.Request(bare)
    user = urllib.parse.unquote(parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME", ""))
    if user:
        password = urllib.parse.unquote(parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
        request.add_unredirected_header("Authorization", basic_auth(user, password))
    return request


def basic_auth(user: str, password: str) -> str:
    """Return the header that names a user to a server with accounts."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def tls_context(uri: str) -> ssl.SSLContext | None:
    """Return how certificates are checked, as MLflow's variables say; None without TLS."""
    if not uri.startswith("https://"):
        return None
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
