"""What a search runs on, read without importing anything heavy."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from loraxs_search.versions import with_python


def tags(gpus: Sequence[str] = ()) -> dict[str, str]:
    """Return what is recorded as tags of a search's run: versions, hardware, and the commit it was started from.

    Args:
        gpus: Names of the GPUs that the caller found.
    """
    commit = git_commit(Path.cwd())
    return (
        {f"version.{name}": version for name, version in with_python().items()}
        | {f"hardware.{name}": value for name, value in hardware(gpus).items()}
        | ({"mlflow.source.git.commit": commit} if commit else {})
    )


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out in `folder`, with `-dirty` when files differ; None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def hardware(gpus: Sequence[str] = ()) -> dict[str, str]:
    """Return CPU model, cores, memory and the names of the GPUs the caller found."""
    facts = {"host": platform.node(), "cpu": _cpu_model(), "cores": str(os.cpu_count() or 0), "gpus": ", ".join(gpus)}
    with contextlib.suppress(ValueError, OSError):  # no such name on this system
        facts["memory_gib"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f}"
    return facts


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""
