"""What a node reports of itself, and what is wrong with it.

Sent to nodes as code, also to those without the package: it imports only the standard library and our `versions`, which
is sent along.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loraxs_search.versions import TRAINING, with_python

Verdict = Literal["ok", "warn", "fail"]

# A host trains in these: another version there may give other results, or fail. The others run in the driver only.
_MUST_AGREE = (*TRAINING, "datasets", "ray")
_GIB = 2**30
_FEW_FILES, _MANY_FILES = 1024, 4096
_SKEW_WARN_S, _SKEW_FAIL_S = 2.0, 60.0


@dataclass(frozen=True)
class CheckResult:
    """One check of one node."""

    node: str
    check: str
    verdict: Verdict
    value: str
    hint: str = ""


def compare_versions(node: str, installed: Mapping[str, str], expected: Mapping[str, str]) -> CheckResult:
    """Compare a node's versions with the driver's."""
    differs: dict[Verdict, list[str]] = {"fail": [], "warn": []}
    for package, wanted in expected.items():
        own = installed.get(package)
        if own == wanted:
            continue
        if package == "python":  # another minor version may not read its pickles
            is_grave = own is None or own.split(".")[:2] != wanted.split(".")[:2]
        else:  # 2.13.0+cpu and +cu128 agree
            is_grave = package in _MUST_AGREE and (own is None or own.partition("+")[0] != wanted.partition("+")[0])
        differs["fail" if is_grave else "warn"].append(f"{package} {own or 'missing'}, the driver has {wanted}")
    if texts := differs["fail"] + differs["warn"]:
        hint = "install the same versions on every node, or have `uv` or `pip` in a --runtime-env FILE ask for them"
        return CheckResult(node, "versions", "fail" if differs["fail"] else "warn", "; ".join(texts), hint)
    return CheckResult(node, "versions", "ok", f"Python {installed.get('python')}, packages as the driver's")


def evaluate(
    node: str, facts: Mapping[str, Any], versions: Mapping[str, str], mlflow: str | None, files: Sequence[str]
) -> Iterator[CheckResult]:
    """Yield a result for each check of a node.

    Args:
        facts: What `facts_here` returns, with `skew_s` of its clock and the GPUs that Ray offers there.
        versions: The driver's.
        mlflow: The server's address, without its password; None for an embedded store.
        files: Those that were asked for.
    """

    def result(check: str, verdict: Verdict, value: str, hint: str = "") -> CheckResult:
        return CheckResult(node, check, verdict, value, "" if verdict == "ok" else hint)

    yield compare_versions(node, facts["versions"], versions)
    if mlflow is not None:
        hint = f"open the way from {node} to {mlflow}: its address, firewall, proxy (no_proxy)"
        yield result("mlflow", "fail" if facts["mlflow_problem"] else "ok", facts["mlflow_problem"] or mlflow, hint)
    if files:
        missing = f"missing: {', '.join(facts['missing_files'])}" if facts["missing_files"] else ""
        hint = "put the files at the same path on every node, or mount a folder that all share"
        yield result("files", "fail" if missing else "ok", missing or f"{len(files)} there", hint)
    if "home" not in facts:  # it was not asked for the rest
        return

    free = facts["free_bytes"]
    verdict: Verdict = "fail" if facts["home_problem"] or free < _GIB / 2 else "warn" if free < 5 * _GIB else "ok"
    hint = "set LORAXS_HOME, when its Ray is started, to a folder with room that it can write to"
    yield result("storage", verdict, f"{facts['home']}: {facts['home_problem'] or f'{_gib(free)} free'}", hint)

    free, total = facts["free_memory_bytes"] or 0, facts["memory_bytes"] or 0
    hint = "a host needs the base, its factors and the rows in memory"
    yield result("memory", "warn" if total and free < 2 * _GIB else "ok", f"{_gib(free)} of {_gib(total)} free", hint)

    offers, sees, gpus = facts["offers_gpus"], facts["torch_gpus"], facts["gpus"]
    if offers or gpus:
        sizes = [(int(total), int(free)) for _, total, free in gpus if (total + free).isdigit()]  # else [N/A]
        verdict, hint = "ok", ""
        if sees < offers:
            verdict, hint = "fail", "install a torch built for the node's driver, or start its Ray with the GPUs it has"
        elif sees > offers:
            verdict, hint = "warn", "start its Ray with --num-gpus to have them used"
        elif any(free < total / 2 for total, free in sizes):
            verdict, hint = "warn", "another program holds their memory"
        kinds = [
            f"{name} ({int(free) / 1024:.0f} of {int(total) / 1024:.0f} GiB free)" if (total + free).isdigit() else name
            for name, total, free in gpus
        ]
        value = f"Ray offers {offers}, torch sees {sees}" + (f": {', '.join(kinds)}" if kinds else "")
        yield result("gpus", verdict, value, hint)

    limit = facts["open_files"]
    verdict = "ok" if limit < 0 or limit >= _MANY_FILES else "fail" if limit < _FEW_FILES else "warn"  # -1: no limit
    hint = f"`ulimit -n {_MANY_FILES * 16}` before its Ray is started"
    yield result("open files", verdict, "unlimited" if limit == -1 else str(limit), hint)

    skew_s = facts["skew_s"]
    verdict = "fail" if abs(skew_s) > _SKEW_FAIL_S else "warn" if abs(skew_s) > _SKEW_WARN_S else "ok"
    hint = "let NTP or chrony set the clock: times of records come from it"
    yield result("clock", verdict, f"{skew_s:+.1f} s against the driver", hint)

    if facts["base_from"] is not None:
        yield result("base", "ok", facts["base_from"])
    if facts["hub_problem"] is not None:
        hint = "let the node reach the hub, set HF_ENDPOINT to a mirror, or bring the base as a folder or package"
        yield result("hub", "fail", facts["hub_problem"], hint)


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


# ---- on the node ----------------------------------------------------------------------------------------------------
def facts_here(question: dict[str, Any]) -> dict[str, Any]:
    """Return what `evaluate` reads, as plain values.

    Args:
        question: `mlflow` (address of a server, or None), `files` (paths that must be there), `base` (id, package and
            revision, or None), `hub` (whether rows come from it), `thorough` (False leaves out what takes seconds).
    """
    mlflow_problem = None
    if question["mlflow"]:
        scheme, _, rest = question["mlflow"].partition("://")
        host, slash, path_there = rest.partition("/")
        anybody = ssl.create_default_context()  # a node sends it nothing: the driver decides whom to trust
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        mlflow_problem = _problem(f"{scheme}://{host.rpartition('@')[2]}{slash}{path_there}/health", anybody)
    facts: dict[str, Any] = {
        "at": time.time(),
        "host": platform.node(),
        "versions": with_python(),
        "missing_files": [path for path in question["files"] if not Path(path).exists()],
        "mlflow_problem": mlflow_problem,
    }
    if not question["thorough"]:
        return facts
    value, home_problem = os.environ.get("LORAXS_HOME"), None
    home = Path(value).expanduser() if value else Path.home() / ".loraxs-search"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        home_problem = error.strerror or str(error)
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    base_from, needs_hub = _base_from(question["base"])
    hub_problem = None
    if needs_hub or question["hub"]:
        is_off = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        hub_problem = "HF_HUB_OFFLINE is set" if is_off else _problem(hub)
    gpus, torch_gpus = _gpus()
    return facts | {
        "home": str(home),
        "home_problem": home_problem,
        "free_bytes": shutil.disk_usage(existing).free,
        "memory_bytes": sizes.get("MemTotal"),
        "free_memory_bytes": sizes.get("MemAvailable"),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "base_from": base_from,
        "hub_problem": hub_problem,
        "gpus": gpus,
        "torch_gpus": torch_gpus,
    }


def _gpus() -> tuple[list[list[str]], int]:
    """Ask the driver for names and memory, and torch, in its own process, how many it can use."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    gpus: list[list[str]] = []
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode == 0:
            gpus = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    if gpus:
        command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
        environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        with contextlib.suppress(OSError, subprocess.TimeoutExpired, ValueError):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
            return gpus, int(done.stdout or 0)
    return gpus, 0


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
