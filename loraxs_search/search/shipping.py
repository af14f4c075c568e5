"""The environment that a search's processes get on every node: its code, what the user asks for, and its versions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from loraxs_search.errors import UsageError
from loraxs_search.search import probe

_OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what `ray job submit` was told, where this driver is such a job
_PACKAGE = Path(__file__).parents[1]


def runtime_env(file: str | None) -> dict[str, Any]:
    """Return Ray's runtime environment of a search on a cluster.

    The package itself goes to every node, so that all run the code of who launches, unless modules were chosen by the
    file or by the Ray job that this driver is.

    Args:
        file: YAML with Ray's own keys; None adds nothing.

    Raises:
        UsageError: the file cannot be read or is no mapping.
    """
    env = _read(file) if file is not None else {}
    given = json.loads(os.environ.get(_OF_A_JOB) or "{}").get("runtime_env") or {}
    if "py_modules" not in env | given:
        env["py_modules"] = [str(_PACKAGE)]
        if "excludes" not in env | given:
            env["excludes"] = ["__pycache__"]
    return env


def versions() -> dict[str, str]:
    """Return the versions that the search's processes must have on every node: those of this one, connected to Ray."""
    import ray

    found = probe.versions()
    if ray.get_runtime_context().runtime_env.get("py_modules"):
        found.pop("loraxs-search", None)  # ours goes there, whatever a node has installed
    return found


def _read(file: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"`--runtime-env` must be a YAML file, but {file}: {reason}.", hint=_EXAMPLE) from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UsageError(f"`--runtime-env` must hold keys and values, but {file} does not.", hint=_EXAMPLE)
    return dict(found)


_EXAMPLE = "for instance one line: `uv: [transformers==5.24.0, peft==0.21.2]`"
