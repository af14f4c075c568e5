"""How much memory is free, of this machine or of the container or job that this process is in; torch's threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch


# What the kernel calls a control group's limit, use, and the part of use that it gives back when asked.
_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_V2 = "memory.max", "memory.current", "inactive_file"


def available_bytes(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the memory that this process may still take.

    psutil knows only the machine; a pod or a Slurm job is ended by the kernel at its own limit.

    Args:
        groups: Where control groups are mounted, version 1 or 2.
        own: Which of them this process is in.
    """
    left = [psutil.virtual_memory().available]
    lines = own.read_text().splitlines() if own.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        root, (limit, used, given_back) = (groups / "memory", _V1) if controllers else (groups, _V2)
        # In a container the path may be the machine's; only its root is seen here.
        inner = root / path.strip("/")
        for folder in (inner, *inner.parents):  # any group around may have a limit too
            with contextlib.suppress(OSError):  # not there
                most, taken = (folder / limit).read_text().strip(), int((folder / used).read_text())
                numbers = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                left += [] if most == "max" else [int(most) - taken + int(numbers.get(given_back, 0))]
            if folder == root:
                break
    return max(0, min(left))


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device."""
    if device.type != "cuda":
        return available_bytes()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


# ---- threads ---------------------------------------------------------------------------------------------------------
# The number is the calling thread's own where torch computes with OpenMP, MKL or an OpenBLAS of OpenMP; but setting it
# also sets what threads begin with that have not computed yet, in the whole process.
@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Have torch use one thread for what the calling thread computes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def side_by_side(count: int, threads: int = 1) -> Iterator[ThreadPoolExecutor]:
    """Have some threads, each with `threads` torch threads; an error cancels what waits."""
    import torch

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "torch", initializer=torch.set_num_threads, initargs=(threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
