"""What a node finds wrong with itself.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from loraxs_search.versions import TRAINING, with_python

Verdict = Literal["ok", "warn", "fail"]

# A host trains in these: another version there may give other results, or fail. The others run in the driver only.
_MUST_AGREE = (*TRAINING, "datasets", "ray")
_GIB = 2**30
_HUB = "the hub"
_FEW_FILES, _MANY_FILES = 1024, 4096
_SKEW_WARN_S, _SKEW_FAIL_S = 2.0, 60.0


Finding = tuple[str, Verdict, str, str]  # a check, its verdict, what was found, what to do


def compare_versions(installed: Mapping[str, str], expected: Mapping[str, str]) -> Finding:
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
        return "versions", "fail" if differs["fail"] else "warn", "; ".join(texts), hint
    return "versions", "ok", f"Python {installed.get('python')}, packages as the driver's", ""


def compare_clocks(read_at: float, asked_at: float, answered_at: float) -> Finding:
    """Compare a node's clock with the driver's: it was read at some time between question and answer."""
    skew_s = max(0.0, read_at - answered_at) + min(0.0, read_at - asked_at)
    verdict: Verdict = "fail" if abs(skew_s) > _SKEW_FAIL_S else "warn" if abs(skew_s) > _SKEW_WARN_S else "ok"
    hint = "" if verdict == "ok" else "let NTP or chrony set the clock: times of records come from it"
    return "clock", verdict, f"{skew_s:+.1f} s against the driver", hint


def checks_here(question: Mapping[str, Any]) -> tuple[float, str, list[Finding]]:
    """Check the node of this process; return its time, its name, and what was found.

    Args:
        question: `address` (of the node), `versions` (the driver's), `mlflow` (address of a server, or None), `files`
            (paths that must be there), `thorough` (False leaves out the rest, which takes seconds), `base` (id, package
            and revision, or None), `hub` (whether rows come from it), `gpus` (how many Ray offers there).
    """
    at, host, found = time.time(), platform.node(), list[Finding]()
    node = f"{question['address']} ({host})" if host else question["address"]

    def add(check: str, verdict: Verdict, value: str, hint: str = "") -> None:
        found.append((check, verdict, value, "" if verdict == "ok" else hint))

    add(*compare_versions(with_python(), question["versions"]))
    if mlflow := question["mlflow"]:
        anybody = ssl.create_default_context()  # a node sends it nothing: the driver decides whom to trust
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        problem = _problem(f"{mlflow}/health", anybody)
        hint = f"open the way from {node} to {mlflow}: its address, firewall, proxy (no_proxy)"
        add("mlflow", "fail" if problem else "ok", problem or mlflow, hint)
    if files := question["files"]:
        missing = ", ".join(path for path in files if not Path(path).exists())
        hint = "put the files at the same path on every node, or mount a folder that all share"
        add("files", "fail" if missing else "ok", f"missing: {missing}" if missing else f"{len(files)} there", hint)
    if not question["thorough"]:
        return at, node, found

    value, problem = os.environ.get("LORAXS_HOME"), None
    home = Path(value).expanduser() if value else Path.home() / ".loraxs-search"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        problem = error.strerror or str(error)
    size = shutil.disk_usage(next(folder for folder in (home, *home.parents) if folder.exists())).free
    verdict: Verdict = "fail" if problem or size < _GIB / 2 else "warn" if size < 5 * _GIB else "ok"
    hint = "set LORAXS_HOME, when its Ray is started, to a folder with room that it can write to"
    add("storage", verdict, f"{home}: {problem or f'{size / _GIB:.1f} GiB free'}", hint)

    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    free, total = sizes.get("MemAvailable", 0), sizes.get("MemTotal", 0)
    hint = "a host needs the base, its factors and the rows in memory"
    add(
        "memory",
        "warn" if total and free < 2 * _GIB else "ok",
        f"{free / _GIB:.1f} GiB of {total / _GIB:.1f} GiB free",
        hint,
    )

    if gpus := _gpus(question["gpus"]):
        add("gpus", *gpus)

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # -1: no limit
    verdict = "ok" if limit < 0 or limit >= _MANY_FILES else "fail" if limit < _FEW_FILES else "warn"
    hint = f"`ulimit -n {_MANY_FILES * 16}` before its Ray is started"
    add("open files", verdict, "unlimited" if limit == -1 else str(limit), hint)

    if source := question["base"] and _base_from(question["base"]):
        add("base", "ok", source)
    if source == _HUB or question["hub"]:
        is_off = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        if problem := "HF_HUB_OFFLINE is set" if is_off else _problem(hub):
            hint = "let the node reach the hub, set HF_ENDPOINT to a mirror, or bring the base as a folder or package"
            add("hub", "fail", problem, hint)
    return at, node, found


def _gpus(offers: int) -> tuple[Verdict, str, str] | None:
    """Compare the GPUs that Ray offers with those that torch can use; None if there are none."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    gpus, sees = list[str](), 0
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        gpus = done.stdout.splitlines() if done.returncode == 0 else []
    if gpus:  # a separate process asks torch
        command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
        environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        with contextlib.suppress(OSError, subprocess.TimeoutExpired, ValueError):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
            sees = int(done.stdout or 0)
    elif not offers:
        return None
    kinds, is_held = list[str](), False
    for gpu in gpus:
        kind, total, free = (cell.strip() for cell in gpu.rsplit(",", 2))
        if (total + free).isdigit():  # else [N/A]
            is_held = is_held or int(free) < int(total) / 2
            kind += f" ({int(free) / 1024:.0f} of {int(total) / 1024:.0f} GiB free)"
        kinds.append(kind)
    value = f"Ray offers {offers}, torch sees {sees}" + (f": {', '.join(kinds)}" if kinds else "")
    if sees < offers:
        return "fail", value, "install a torch built for the node's driver, or start its Ray with the GPUs it has"
    if sees > offers:
        return "warn", value, "start its Ray with --num-gpus to have them used"
    return "warn" if is_held else "ok", value, "another program holds their memory"


def _base_from(base: Mapping[str, Any]) -> str:
    """Say where a base would be taken from."""
    if Path(base["id"]).expanduser().is_dir():
        return "folder"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if base["package"]:
            return f"package {base['package']} {importlib.metadata.version(base['package'])}"
    with contextlib.suppress(ImportError, ValueError):  # no such library, or an id that the hub cannot have
        from huggingface_hub import try_to_load_from_cache

        if isinstance(try_to_load_from_cache(base["id"], "config.json", revision=base["revision"]), str):
            return "the hub's cache"
    return _HUB


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
