"""How busy the node and the device of this process are, under MLflow's own names of system metrics."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping

import psutil

_MEGABYTE = 1e6  # as MLflow counts them


def node_usage() -> dict[str, float]:
    """Return readings of the node, and of this process's GPU if it has one and computes on it.

    The use of its processors is that since the call before, by this process; the first call has none to say.
    """
    memory = psutil.virtual_memory()
    node = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / _MEGABYTE,
        "system_memory_usage_percentage": memory.percent,
    }
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return node | {f"gpu_{gpu}_{name}": value for name, value in _gpu_usage().items()}


def _gpu_usage() -> Mapping[str, float]:
    """Return readings of the only GPU that this process sees; how busy it is only where NVIDIA's library is there."""
    if "torch" not in sys.modules:
        return {}
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    readings = {
        "memory_usage_megabytes": (total - free) / _MEGABYTE,
        "memory_usage_percentage": 100.0 * (total - free) / total,
    }
    with contextlib.suppress(ImportError, RuntimeError):  # no nvidia-ml-py; a driver that says nothing
        readings["utilization_percentage"] = float(torch.cuda.utilization())
    return readings
