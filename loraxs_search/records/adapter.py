"""An adapter: what is stored beside it, what a host says of itself and of it, where trials can start from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraxs_search.errors import UsageError
from loraxs_search.records.codec import Pooling, Scalar, Split
from loraxs_search.records.task import BaseModel, DataReport, Identity, LinearModule
from loraxs_search.records.trial import Hyperparameters


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
        confidences: How likely each answer is, in whole millionths, rounded down.
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
    confidences: tuple[float, ...] | None = None
    wrong: tuple[Sample, ...] = ()
    slices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class StartFrom:
    """The registered adapter that a study's trials start from, as it was when the study was launched.

    Args:
        name: `TASK:3`.
        digest: Content address of its folder.
        with_head: Whether they start from its head too: it answers with the same labels, and reads the same pool.
        pooling: What its head reads.
    """

    name: str
    digest: str
    base_digest: str
    hyperparameters: Hyperparameters
    with_head: bool = False
    pooling: Pooling = "class"


@dataclass(frozen=True)
class ReferenceLogits:
    """Inputs made by rule, not from data, and the logits an adapter gave for them in float32: an end-to-end check."""

    input_ids: tuple[tuple[int, ...], ...]
    logits: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Entity:
    """A part of a text that an adapter has found in it.

    Args:
        start: Number of its first character, from 0.
        end: That of the character behind its last one.
    """

    start: int
    end: int
    type: str
    text: str


@dataclass(frozen=True)
class Prediction:
    """An adapter's answer to one row; fields that the task's kind does not use are None.

    Args:
        text: The row as people read it.
        label: The answer in words: the most likely label, the median level, all labels with `|` between, a text that
            was written, or the tag of each word.
        score: How likely it is; where the answer is a number, that number.
        probabilities: Of each label of the task, where the answer is one of them, or some.
        entities: What was found in the text, in its order, where that is asked for.
        expected: Of an answer on ordered levels, the mean of the levels by their probabilities: of the numbers that
            they are called, or where one is called otherwise, of their places from 0.
        sure_at: Of each operating point that the adapter has a threshold for, whether the answer is as likely.
    """

    text: str
    label: str | None
    score: float | None
    probabilities: Mapping[str, float] | None = None
    entities: tuple[Entity, ...] | None = None
    expected: float | None = None
    sure_at: Mapping[float, bool] | None = None

    def sure(self, point: float) -> bool:
        """Return whether the answer is sure enough for an operating point of the adapter, such as 0.95.

        Raises:
            UsageError: the adapter has no threshold for it.
        """
        if (known := self.sure_at or {}).get(point) is None:
            raise UsageError(
                f"An operating point must be one of the adapter's ({', '.join(map(str, known)) or 'it has none'}), but"
                f" got {point}."
            )
        return known[point]


@dataclass(frozen=True)
class Sample:
    """A test row that a classifier answers wrongly, as people read it.

    Args:
        prompt: What the adapter was given, its beginning where it is long.
        reference: The row's label.
        answer: The label that the adapter gave.
    """

    prompt: str
    reference: str
    answer: str


NUM_WRONG_ROWS = 20


@dataclass(frozen=True)
class ClassScores:
    """A classifier's scores on the test rows of one class; None if no row counts for a number.

    Args:
        rows: That are of the class.
        precision: Share of the answers with this class that are right.
        recall: Share of its rows that are answered so.
    """

    label: str
    rows: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class ClassReport:
    """How a classifier does on the test rows, class by class.

    Args:
        classes: In the order of their ids.
        confusion: For the rows of each class, how often each class was answered; empty where rows have several.
        wrong: The first rows that were answered wrongly, as the adapter reads them.
    """

    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    wrong: tuple[Sample, ...] = ()
