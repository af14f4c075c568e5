"""What a host says of itself and of an adapter that it writes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraxs_search.records._adapter import Probe
from loraxs_search.records._base import BaseModel, LinearModule
from loraxs_search.records._data import DataReport
from loraxs_search.records._words import Split


@dataclass(frozen=True)
class HostInfo:
    """What a host found on its node: the base's modules, the data, the device.

    Args:
        num_slots: Trials that it trains at once.
        base_bytes: Size of the base's weights on disk.
        data: What the task's splits share and repeat.
        unpackable: Layers that cannot serve many trials in one pass; of a host of lone trials, none.
    """

    base: BaseModel
    modules: tuple[LinearModule, ...]
    head_parameters: int
    data_fingerprint: str
    num_rows: Mapping[Split, int]
    device: str
    dtype: str
    versions: Mapping[str, str]
    num_slots: int = 1
    base_bytes: int = 0
    data: DataReport = field(default_factory=DataReport)
    unpackable: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Confirmation:
    """A trained adapter as others will load it: scores in the checkpoint's own precision, files, end-to-end probe.

    Args:
        predictions: The answer to each test row, in the split's order: label id or number; empty when not scored.
        labels: What each of these rows should be.
        factors: Key of every factor file the adapter stands on, to the checksum of its numbers.
    """

    trial_id: str
    test_metrics: Mapping[str, float]
    files: Mapping[str, bytes]
    probe: Probe
    predictions: tuple[float, ...] = ()
    labels: tuple[float, ...] = ()
    factors: Mapping[str, str] = field(default_factory=dict)
