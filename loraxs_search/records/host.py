"""What a host says of itself and of an adapter that it writes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraxs_search.records.adapter import ReferenceLogits, Sample
from loraxs_search.records.base import BaseModel, Identity, LinearModule
from loraxs_search.records.literals import Pooling, Scalar, Split
from loraxs_search.records.task import DataReport


@dataclass(frozen=True)
class HostInfo:
    """The report of a host on its node: the base's modules, the data, the device.

    Args:
        num_slots: Trials that it trains at once, at most.
        full_slots: Trials that fill the device: with more at once, each takes as long as it saves the others.
        base_bytes: Size of the base's weights on disk.
        test_fingerprint: Of the test rows.
        unpackable: Layers that cannot serve many trials in one pass; of a host of lone trials, none.
        data: What the task's splits share and repeat.
        pooling: Which states the task's head reads: `auto`, resolved on the base.
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
    full_slots: int = 1
    base_bytes: int = 0
    unpackable: frozenset[str] = frozenset()
    data: DataReport = field(default_factory=DataReport)
    test_fingerprint: str = ""
    pooling: Pooling = "class"

    @property
    def identity(self) -> Identity:
        """What of base and data a study is held to."""
        return Identity(self.base.weight_digest, self.data_fingerprint, self.base.setup)


@dataclass(frozen=True)
class LinearProbe:
    """The output layer of a task's head, fitted on the untouched base.

    Args:
        content: A safetensors file with its weight and bias by their names in the base; empty if there is none.
        num_rows: Train rows that it was fitted on.
        seconds: What that took.
        reason: Why there is none.
    """

    content: bytes = b""
    num_rows: int = 0
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class LargestTrial:
    """The largest of the trials that share a host's passes, by which its slots are counted.

    Args:
        adapters: Method and its own parameters of each adapter that may take the most memory.
    """

    batch_size: int = 16
    adapters: tuple[tuple[str, Mapping[str, Scalar]], ...] = ()


@dataclass(frozen=True)
class Confirmation:
    """A trained adapter as others will load it: files, end-to-end probe.

    Args:
        factors: Key of every factor file that the adapter needs, to the checksum of its numbers.
        ends: The tokens that end an answer that it writes, as the tokenizer names them.
    """

    trial_id: str
    files: Mapping[str, bytes]
    probe: ReferenceLogits
    factors: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """Answers to consecutive rows, of a trained adapter or of the untouched base, in the checkpoint's precision.

    Fields that the task's kind does not give are None.

    Args:
        predictions: Label ids, numbers or texts.
        labels: What each of these rows should be.
        loss: Sum over what the loss is the mean of.
        loss_count: How many these are; None means one a row.
        losses: The sum of each row's loss.
        counts: What these are sums of.
        correct: How many of these were predicted.
        ended: False where the bound on new tokens ended what was written.
        seconds: What it took the device; 0 where that was not measured.
        wrong: Of a classifier's answers to test rows, the first that are wrong.
        slices: Of test rows, what each has in the columns that the task names as `slices`.
    """

    predictions: tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
    labels: tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
    loss: float
    loss_count: int | None = None
    losses: tuple[float, ...] | None = None
    counts: tuple[int, ...] | None = None
    correct: tuple[int, ...] | None = None
    ended: tuple[bool, ...] | None = None
    seconds: float = 0.0
    wrong: tuple[Sample, ...] = ()
    slices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
