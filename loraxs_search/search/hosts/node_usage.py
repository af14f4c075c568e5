"""How busy the node and the device of this process are, under MLflow's own names of system metrics."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping

import psutil

_MEGABYTE = 1e6  # as MLflow counts them


class NodeUsage:
    """Reads how busy the node is, and this process's GPU if it has one and computes on it.

    psutil's own percentage is of each thread that asks, and of the first question it says 0.
    """

    def __init__(self) -> None:
        self._before = _processor_seconds()

    def read(self) -> dict[str, float]:
        """Return readings; that of processors is since the reading before, by whatever thread."""
        memory, (busy, total) = psutil.virtual_memory(), _processor_seconds()
        before, self._before = self._before, (busy, total)
        spent = total - before[1]
        node = {
            "cpu_utilization_percentage": 100.0 * (busy - before[0]) / spent if spent > 0 else 0.0,
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
        }
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return node | {f"gpu_{gpu}_{name}": value for name, value in _gpu_usage().items()}


def _processor_seconds() -> tuple[float, float]:
    """Return what all processors have spent since the machine started: at work, and in all."""
    times = psutil.cpu_times()._asdict()
    total = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)  # in `user` and `nice` already
    return total - times["idle"] - times.get("iowait", 0.0), total


def _gpu_usage() -> Mapping[str, float]:
    """Return readings of the only GPU that this process sees; how busy it is only where NVIDIA's library is there."""
    if "torch" not in sys.modules:
        return {}
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    free, total = torch.cuda.mem_get_info()
    readings = {
        "memory_usage_megabytes": (total - free) / _MEGABYTE,
        "memory_usage_percentage": 100.0 * (total - free) / total,
    }
    with contextlib.suppress(ImportError, RuntimeError):  # no nvidia-ml-py; a driver that says nothing
        readings["utilization_percentage"] = float(torch.cuda.utilization())
    return readings
