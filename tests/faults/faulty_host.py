"""A host that trains for real, except for the trials it is to spoil."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialReport, TrialSpec
from loraxs_search.search.hosts.host_config import HostConfig, training_host

if TYPE_CHECKING:
    from loraxs_search.packing.host import TrialHost

SPOILT = {"00001": "raises", "00002": "memory", "00003": "metric"}


class FaultyHost:
    """Passes everything on to the host that trains.

    Args:
        spoilt: What is to happen to a trial at its second report, by its id.
    """

    def __init__(self, host: TrialHost, spoilt: Mapping[str, str]) -> None:
        self._host, self._spoilt = host, spoilt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def advance(self, spec: TrialSpec, until: int, snapshot: bytes | None, task: Task) -> tuple[TrialReport, bytes]:
        import torch

        report, state = self._host.advance(spec, until, snapshot, task)
        fault = self._spoilt.get(spec.trial_id) if snapshot else None
        if fault == "raises":
            raise ValueError("something nobody thought of")
        if fault == "memory":
            torch.empty(2**60)  # the allocator's own error
        if fault == "metric":
            others = {name: value for name, value in report.metrics.items() if name != task.metric}
            return replace(report, metrics=others), state
        return report, state


def faulty_host(config: HostConfig, task: Task, threads: int) -> TrialHost:
    """Return the host of a config; see `HostConfig.make`."""
    return FaultyHost(training_host(config, task, threads), SPOILT)
