"""The environment that a search's processes get on every node: code, packages, versions; why it could not be made."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from loraxs_search.errors import ClusterError, UsageError, unknown_name
from loraxs_search.versions import with_python

_OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what `ray job submit` was given, where this driver is such a job
_PACKAGE = Path(__file__).parents[2]
_INSTALLERS = ("uv", "pip", "conda", "image_uri", "container")
_PLUGINS = "RAY_RUNTIME_ENV_PLUGINS"  # who sets it has their own keys
_OUTPUT = "Last 50 lines of stdout:"  # of the installer, indented below it in Ray's message
_NODE = re.compile(r"^\[Node ([^\]]+)\]", re.MULTILINE)
SETUP_HINT = (
    "put right what --runtime-env asks for, or what the node lacks: `pip` and `uv` need the package virtualenv beside "
    "its Ray, a way to the package index, and room in Ray's folder, as the whole environment is copied first"
)


def job_environment(file: str | None) -> dict[str, Any]:
    """Return Ray's runtime environment of a search on a cluster.

    The package itself goes to every node, so that all run the code of who launches, unless modules were chosen by the
    file or by the Ray job that this driver is.

    Args:
        file: YAML with Ray's own keys; None adds nothing.

    Raises:
        UsageError: the file cannot be read, is no mapping, or Ray does not take what it says.
    """
    env: Any = {}
    if file is not None:
        try:
            env = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"`--runtime-env` must be a YAML file, but {file}: {reason}.", hint=_EXAMPLE) from error
        if not isinstance(env, dict) or not all(isinstance(key, str) for key in env):
            raise UsageError(f"`--runtime-env` must hold keys and values, but {file} does not.", hint=_EXAMPLE)
        from ray.runtime_env import RuntimeEnv

        # Ray would leave an unknown key out without a word, and refuse a wrong value without naming the file.
        known = {key for key in RuntimeEnv.known_fields if not key.startswith("_")} | {"nsight", "rocprof_sys"}
        unknown = [] if _PLUGINS in os.environ else sorted(env.keys() - known)
        if unknown:
            raise UsageError(unknown_name(f"key of {file}", unknown[0], known), hint=_EXAMPLE)
        try:
            RuntimeEnv(**env)
        except (TypeError, ValueError) as error:
            raise UsageError(f"`--runtime-env` must be what Ray takes, but {file}: {error}", hint=_EXAMPLE) from error
    given = json.loads(os.environ.get(_OF_A_JOB) or "{}").get("runtime_env") or {}
    if "py_modules" not in env | given:
        env["py_modules"] = [str(_PACKAGE)]
        if "excludes" not in env | given:
            env["excludes"] = ["__pycache__"]
    return dict(env)


def installers() -> dict[str, Any]:
    """Return the part of the environment, connected to Ray, for which nodes have to install something first."""
    import ray

    env = ray.get_runtime_context().runtime_env
    return {key: env[key] for key in _INSTALLERS if key in env}


def setup_problem(message: str) -> str:
    """Return in one line why Ray could not make the environment on a node.

    Ray has it in a traceback of a page: what the installer calls an error is wanted, or else the last line.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    output = lines[lines.index(_OUTPUT) + 1 :] if _OUTPUT in lines else []
    errors = [index for index, line in enumerate(output) if line.lower().startswith("error")]
    return " ".join(output[errors[0] :][:4]) if errors else (output or lines or [""])[-1]


def setup_error(message: str) -> ClusterError:
    """Return the error of a search whose environment could not be made, with Ray's message."""
    node = _NODE.search(message)
    which = node[1] if node else "one"
    return ClusterError(
        f"Every node must be able to make the search's environment, but {which} is not: {setup_problem(message)}",
        hint=SETUP_HINT,
    )


def versions() -> dict[str, str]:
    """Return the versions that the search's processes must have on every node: those of this one, connected to Ray."""
    import ray

    here = with_python()
    if ray.get_runtime_context().runtime_env.get("py_modules"):
        here.pop("loraxs-search", None)  # this one goes there, whatever a node has installed
    return here


_EXAMPLE = "for instance one line: `uv: [transformers==5.24.0, peft==0.21.2]`"
