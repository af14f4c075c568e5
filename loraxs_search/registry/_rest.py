"""One plain request to a server's REST API, for the question that every pull asks: importing MLflow takes longer."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from types import SimpleNamespace
from typing import Any

from loraxs_search.mlflow_uri import request_to, tls_context
from loraxs_search.registry.names import AdapterName

_TIMEOUT_S = 5.0
_OTHER_WAYS_IN = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_WORKSPACE")


class UnansweredError(Exception):
    """The server did not give a version: MLflow's client finds out why. It never leaves this room."""


def find_version(uri: str, name: AdapterName) -> Any:
    """Return a model version with the attributes of MLflow's own.

    Raises:
        UnansweredError: there is none, or the server wants to be asked in another way.
    """
    if any(os.environ.get(variable) for variable in _OTHER_WAYS_IN):
        raise UnansweredError
    query = {"name": name.task} | ({"alias": name.alias} if name.version is None else {"version": str(name.version)})
    call = "registered-models/alias" if name.version is None else "model-versions/get"
    request = request_to(f"{uri}/api/2.0/mlflow/{call}?{urllib.parse.urlencode(query)}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=tls_context(uri)) as answer:
            found = json.load(answer)["model_version"]
        return SimpleNamespace(
            name=found["name"],
            version=found["version"],
            aliases=found.get("aliases", []),
            tags={tag["key"]: tag.get("value", "") for tag in found.get("tags", [])},
            source=found.get("source", ""),
            run_id=found.get("run_id"),
            creation_timestamp=found["creation_timestamp"],
        )
    except urllib.error.HTTPError as error:
        error.close()
        raise UnansweredError from error
    except (OSError, ValueError, KeyError) as error:
        raise UnansweredError from error
