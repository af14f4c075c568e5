"""Plain requests to an MLflow server, for what is asked before MLflow is imported or instead of importing it.

They go through `requests`, as MLflow's own client does: proxies, certificates (REQUESTS_CA_BUNDLE), ~/.netrc and the
account are then those of that client, and what works here works there. It is imported with the first request, so that
nothing else pays for it: `--help` loads no HTTP client at all, `ls` and `pull` some 40 ms more than with urllib, of
the 300 ms that they may take before the first answer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from loraxs_search.errors import TrackingError
from loraxs_search.mlflow_uri import ENV_PASSWORD, ENV_URI, ENV_USER, redact

if TYPE_CHECKING:
    import requests

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
    return requests.get(
        url,
        params=params,
        # Bytes, as MLflow sends them: `requests` would take them for Latin-1.
        auth=HTTPBasicAuth(user.encode(), password.encode()) if user else None,
        verify=False if _is_true(_INSECURE) else os.environ.get(_CERTIFICATE) or True,
        timeout=timeout_s,
        stream=stream,
    )


def check_server(uri: str, *, timeout_s: float = 5.0) -> None:
    """Ask a server whether it is alive.

    Raises:
        TrackingError: no MLflow server answers at `uri` within `timeout_s`.
    """
    try:
        status = get(f"{uri}/health", timeout_s=timeout_s).status_code
    except (OSError, ValueError) as error:
        problem = reason(error)
    else:
        # 401 and 403: a proxy that wants credentials. It is alive, and MLflow's client sends its own.
        if status < 400 or status in (401, 403):
            return
        problem = f"it answers /health with status {status}"
    raise TrackingError(
        f"The MLflow server at {redact(uri)} must be reachable, but: {redact(problem)}.",
        hint=f"start it, or check --tracking-uri and {ENV_URI}; without either, runs go to a local database",
    )


def reason(error: Exception) -> str:
    """Return what the system says of a request that failed, without the layers of the client around it."""
    inner = error.args[0] if error.args else error
    inner = getattr(inner, "reason", inner)
    if not isinstance(inner, Exception):
        return str(error)
    below = inner.__cause__ or next((part for part in reversed(inner.args) if isinstance(part, Exception)), inner)
    return str(below) or type(below).__name__


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")
