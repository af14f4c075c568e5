"""How much memory is free: of this machine, or of the container or job that this process is in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Files:
    """What the kernel calls a control group's limit, use, and the part of use that it gives back when asked."""

    limit: str
    used: str
    given_back: str


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def available_bytes(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the memory that this process may still take.

    psutil knows only the machine; a pod or a Slurm job is ended by the kernel at its own limit.

    Args:
        groups: Where control groups are mounted, version 1 or 2.
        own: Which of them this process is in.
    """
    left = (_left(folder, files) for folder, files in _memory_groups(groups, own))
    return max(0, min([psutil.virtual_memory().available, *(number for number in left if number is not None)]))


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device."""
    if device.type != "cuda":
        return available_bytes()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def _memory_groups(groups: Path, own: Path) -> Iterator[tuple[Path, _Files]]:
    """Yield the groups that this process is in, each with those around it: any of them may have a limit."""
    lines = own.read_text().splitlines() if own.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (groups / "memory", _V1) if controllers else (groups, _V2)
        # In a container the path may be the machine's; only its root is seen here.
        inner = root / path.strip("/")
        for folder in (inner, *inner.parents):
            yield folder, files
            if folder == root:
                break


def _left(folder: Path, files: _Files) -> int | None:
    """Return what a group may still take; None if it is not there or has no limit."""
    try:
        limit, used = (folder / files.limit).read_text().strip(), int((folder / files.used).read_text())
        numbers = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else int(limit) - used + int(numbers.get(files.given_back, 0))
