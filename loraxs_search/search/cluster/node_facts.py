"""Facts that a node reports of itself. Sent to nodes as code, also to those without the package.

It imports only the standard library and our `versions`, which is sent along.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import resource
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from loraxs_search.versions import with_python

_HASHED_BYTES = 1 << 30  # of a file; a larger one is compared by content as its host joins


def facts_here(question: dict[str, Any]) -> dict[str, Any]:
    """Return what `NodeFacts` holds, as plain values.

    Args:
        question: `mlflow` (address of a server, or None), `files` (paths that must be there), `base` (id, package and
            revision, or None), `hub` (whether rows come from it), `thorough` (False leaves out what takes seconds).
    """
    facts: dict[str, Any] = {
        "at": time.time(),
        "host": platform.node(),
        "versions": with_python(),
        "missing_files": [path for path in question["files"] if not Path(path).exists()],
        "file_digests": _digests(question["files"]),
        "mlflow_problem": _mlflow_problem(question["mlflow"]) if question["mlflow"] else None,
    }
    if question["thorough"]:
        facts |= _home() | _memory() | {"open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0]}
        facts["base_from"], needs_hub = _base_from(question["base"])
        facts["hub_problem"] = _hub_problem() if needs_hub or question["hub"] else None
        facts |= _gpus()
    return facts


def _digests(paths: list[str]) -> dict[str, str]:
    """Return the sha256 of each path that is a file of no great size and can be read."""
    digests = {}
    for path in map(Path, paths):
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_size <= _HASHED_BYTES:
                with path.open("rb") as file:
                    digests[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _home() -> dict[str, Any]:
    value = os.environ.get("LORAXS_HOME")
    home = Path(value).expanduser() if value else Path.home() / ".loraxs-search"
    problem = None
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        problem = error.strerror or str(error)
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    return {"home": str(home), "home_problem": problem, "free_bytes": shutil.disk_usage(existing).free}


def _memory() -> dict[str, Any]:
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return {"memory_bytes": sizes.get("MemTotal"), "free_memory_bytes": sizes.get("MemAvailable")}


def _gpus() -> dict[str, Any]:
    """Ask the driver for names and memory, and torch, in its own process, how many it can use."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    gpus: list[list[str]] = []
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode == 0:
            gpus = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return {"gpus": gpus, "torch_gpus": _torch_gpus() if gpus else 0}


def _torch_gpus() -> int:
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        return int(done.stdout or 0)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return 0


def _base_from(base: dict[str, Any] | None) -> tuple[str | None, bool]:
    """Say where a base would be taken from, and whether that needs the hub."""
    if base is None:
        return None, False
    if Path(base["id"]).expanduser().is_dir():
        return "folder", False
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if base["package"]:
            return f"package {base['package']} {importlib.metadata.version(base['package'])}", False
    try:
        from huggingface_hub import try_to_load_from_cache

        cached = isinstance(try_to_load_from_cache(base["id"], "config.json", revision=base["revision"]), str)
    except (ImportError, ValueError):  # no such library, or an id that the hub cannot have
        cached = False
    return ("the hub's cache", False) if cached else ("the hub", True)


def _hub_problem() -> str | None:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"
    return _problem(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))


def _mlflow_problem(uri: str) -> str | None:
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    anybody = ssl.create_default_context()  # a node sends it nothing: the driver decides whom to trust
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    return _problem(f"{scheme}://{host.rpartition('@')[2]}{slash}{path}/health", anybody)


def _problem(url: str, trust: ssl.SSLContext | None = None) -> str | None:
    """Say why nothing answers at an address; whoever refuses us is there."""
    try:
        with urllib.request.urlopen(url, timeout=5, context=trust):
            return None
    except urllib.error.HTTPError as error:
        status = error.code
        error.close()
        return None if status in (401, 403) else f"it answers with status {status}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
