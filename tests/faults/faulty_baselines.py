"""A host whose baselines go wrong."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from support.simulated_host import simulated_host

from loraxs_search.packing._base import Host
from loraxs_search.records.promotion import Baseline
from loraxs_search.records.task import Task
from loraxs_search.search.hosts.host_config import HostConfig

Fault = Literal["dies once", "raises"]


class FaultyBaselines:
    """Passes everything else on to a host that does not.

    Args:
        marker: A file that says that the host has died once.
    """

    def __init__(self, host: Host, fault: Fault, marker: Path) -> None:
        self._host, self._fault, self._marker = host, fault, marker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def baselines(self, task: Task) -> tuple[Baseline, ...]:
        if self._fault == "raises":
            raise ValueError("something nobody thought of")
        if not self._marker.exists():
            self._marker.touch()
            os._exit(1)
        return self._host.baselines(task)


def faulty_baselines(config: HostConfig, task: Task, threads: int, *, fault: Fault, marker: Path) -> Host:
    """Return the host of a config; see `HostConfig.make`."""
    return FaultyBaselines(simulated_host(config, task, threads, pace_s=0.01), fault, marker)


def with_fault(fault: Fault, marker: Path) -> Callable[..., Host]:
    """Return what makes such hosts; a pool is known by the name of what makes its hosts."""
    make = functools.partial(faulty_baselines, fault=fault, marker=marker)
    return functools.update_wrapper(make, faulty_baselines)
