"""Frozen dataclasses that cross rooms. Plain values only: no torch, no mlflow, no behaviour beyond what they are."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Scalar = str | int | float | bool
Direction = Literal["maximize", "minimize"]
TaskKind = Literal["sequence-classification", "regression"]
Sigma = Literal["input", "sqrt", "output", "none"]
Basis = Literal["top", "middle", "bottom", "random"]
Head = Literal["full", "output"]
LrSchedule = Literal["linear", "cosine", "constant"]
Split = Literal["train", "validation", "test"]
Precision = Literal["auto", "float32", "bfloat16"]
SearchDevice = Literal["auto", "gpu", "cpu"]

MAX_AUTO_PACK_SIZE = 64  # what `pack_size: auto` comes to at most


# ---- base model ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class BaseModelRef:
    """A base model as a user names it.

    Args:
        id: Hub id (`org/name`) or a local folder.
        revision: Hub commit, tag or branch; pinned to a commit when located.
        package: Python distribution that carries the same files; used when it is installed.
        sha256: Expected digest of the weight file; a different file is refused.
    """

    id: str
    revision: str | None = None
    package: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class BaseModel:
    """A base model that was found on this machine.

    Args:
        id: Hub id or folder, as named.
        path: Folder with config, weights and tokenizer on this machine.
        weight_digest: sha256 of the weight file; of the sorted list of digests when sharded.
        revision: Hub commit, when it came from the hub.
    """

    id: str
    path: str
    weight_digest: str
    revision: str | None = None


@dataclass(frozen=True)
class LinearModule:
    """A linear layer that an adapter can attach to; `name` is the full module path in the task model."""

    name: str
    in_features: int
    out_features: int


# ---- task ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class DataSource:
    """Where a task's rows come from: the hub (`hub`, `config`, `revision`) or local `data_files`, never both.

    Args:
        data_files: Split name to absolute path (json/jsonl/csv/parquet, optionally gzipped).
        splits: Our split names (train, validation, test) to the source's; missing ones are carved.
    """

    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    data_files: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[Split, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What is learnt: rows, columns, labels and how an answer is scored.

    Args:
        labels: Label names in id order; empty for regression.
        metrics: Every metric reported; `metric` is the one searched for and is among them.
        max_length: Longest sequence in tokens; longer ones are truncated.
        validation_rows: At most this many validation rows are scored at each report; None means all.
    """

    name: str
    kind: TaskKind
    source: DataSource
    text: str
    label: str
    metric: str
    direction: Direction
    metrics: tuple[str, ...]
    text_pair: str | None = None
    labels: tuple[str, ...] = ()
    max_length: int = 128
    validation_rows: int | None = None


# ---- trial -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Hyperparameters:
    """Everything that decides a trial's numbers, modules resolved to full names.

    Args:
        scale: Factor of the update, alpha / r.
        target_modules: Full names of the adapted linear layers, in model order.
        warmup_ratio: Share of `max_steps` during which both learning rates rise linearly.
        max_grad_norm: Clip on the trial's whole gradient (R and head); 0 means no clip.
        factor_rank: Rank at which the factors are computed; the trial uses their first `rank` columns.
    """

    rank: int
    target_modules: tuple[str, ...]
    learning_rate: float
    head_learning_rate: float
    scale: float = 1.0
    sigma: Sigma = "input"
    basis: Basis = "top"
    head: Head = "full"
    init_std: float = 1e-5
    weight_decay: float = 0.0
    lr_schedule: LrSchedule = "linear"
    warmup_ratio: float = 0.06
    max_grad_norm: float = 1.0
    batch_size: int = 16
    max_steps: int = 160
    seed: int = 0
    factor_rank: int | None = None


@dataclass(frozen=True)
class TrialSpec:
    """One trial: its id within the study, the sampled params as people read them, and what they resolve to.

    Args:
        study: Tells trials of several studies apart that share a host.
    """

    trial_id: str
    params: Mapping[str, Scalar]
    hyperparameters: Hyperparameters
    study: str = ""

    @property
    def name(self) -> str:
        """Unique on a host."""
        return f"{self.study}/{self.trial_id}" if self.study else self.trial_id


class TrialState(enum.StrEnum):
    """How a trial stands; the last three are final and are Optuna's own words."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


@dataclass(frozen=True)
class AdapterSize:
    """What is stored: R **and** head."""

    r_parameters: int
    head_parameters: int
    stored_bytes: int


@dataclass(frozen=True)
class TrialReport:
    """Scores of a trial after `step` optimizer steps.

    Args:
        metrics: Validation metrics by name (`accuracy`, ...), finite.
        train_loss: Mean training loss since the report before.
        device_s: Seconds of computation spent on this trial so far.
        num_tokens: Real (unpadded) training tokens seen so far.
    """

    trial_id: str
    step: int
    metrics: Mapping[str, float]
    train_loss: float
    device_s: float
    num_tokens: int
    size: AdapterSize


@dataclass(frozen=True)
class TrialRecord:
    """All that is known of a trial; `reason` says why it ended, for people."""

    trial_id: str
    params: Mapping[str, Scalar]
    state: TrialState
    reason: str = ""
    reports: tuple[TrialReport, ...] = ()
    started_at: float = 0.0
    ended_at: float | None = None


# ---- host ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class HostInfo:
    """What a host found on its node: the base's modules, the data, the device.

    Args:
        num_slots: Trials that it trains at once.
        base_bytes: Size of the base's weights on disk.
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


# ---- search ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SearchPlan:
    """How a search spends its budget.

    Args:
        concurrent: Trials in flight at once; None means as many as the devices hold, counted anew as nodes come and
            go. An autoscaler starts nodes for those that do not fit.
        report_every: Steps between two reports; also ASHA's first rung.
        scheduler: `asha` stops weak trials at rungs, `none` lets all finish.
        reduction_factor: ASHA keeps the best 1/reduction_factor at each rung.
        time_budget_s: The search stops proposing and running trials after this; None means no limit.
        keep_hosts_s: How long hosts stay loaded after the search, for the next one on the same cluster; None ends them.
        max_failures: How often a trial is restarted after losing its node or process.
        pack_size: Trials that share one device; 1 is the lone trial, `auto` lets the device's memory and speed decide.
        precision: Format the frozen base is held in; `auto` is bfloat16 where the hardware has it natively.
        device: What trials run on; `auto` is GPUs where the cluster has any, else CPUs.
    """

    trials: int = 16
    max_steps: int = 160
    report_every: int = 40
    concurrent: int | None = None
    scheduler: Literal["asha", "none"] = "asha"
    reduction_factor: int = 2
    time_budget_s: float | None = None
    keep_hosts_s: float | None = None
    max_failures: int = 3
    pack_size: int | Literal["auto"] = 1
    precision: Precision = "auto"
    device: SearchDevice = "auto"
    seed: int = 0


# ---- promotion -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PromotionRule:
    """When a candidate becomes champion.

    Args:
        metric: Test metric that decides; None means the task's own.
        direction: Which way it is better; None means as the metric table has it.
        min_gain: What a candidate must gain over the champion, in the metric's unit.
        confidence: How sure a gain or a loss on the same test rows must be to count as one; 0 asks for no test.
        tolerance: Among candidates within this of the best, and not surely worse, the smallest stored bytes win.
        guards: Metric to how much it may fall below the champion's, in its own unit.
        max_bytes: Larger adapters are not considered; None means no limit.
        candidates: How many of the best trials (by validation) are scored on the test split.
        seeds: How often each candidate is trained again from a fresh seed, to say how much of its score is luck.
    """

    metric: str | None = None
    direction: Direction | None = None
    min_gain: float = 0.0
    confidence: float = 0.95
    tolerance: float = 0.0
    guards: Mapping[str, float] = field(default_factory=dict)
    max_bytes: int | None = None
    candidates: int = 3
    seeds: int = 2


@dataclass(frozen=True)
class Refit:
    """A candidate's recipe trained again from another seed, and scored on the same rows.

    Args:
        failed: Why it has no scores; empty when it has.
    """

    seed: int
    validation_metrics: Mapping[str, float] = field(default_factory=dict)
    test_metrics: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True)
class Candidate:
    """A finished trial scored on held-out rows.

    Args:
        base_model: The base's id, as named.
        refits: The same recipe from other seeds; what is promoted is the trial itself.
    """

    study: str
    trial_id: str
    task: str
    test_metrics: Mapping[str, float]
    validation_metrics: Mapping[str, float]
    stored_bytes: int
    data_fingerprint: str
    base_digest: str
    base_model: str = ""
    refits: tuple[Refit, ...] = ()


Action = Literal["promote", "rollback", "remove"]


@dataclass(frozen=True)
class Decision:
    """What was decided on a task's champion, with the numbers used; recorded for refusals too.

    Args:
        promoted: Whether `winner` became champion of the task, or of its base.
        winner: Trial id of the candidate chosen among its peers; None when none was eligible.
        champion: `study/trial_id` of the champion it was compared with.
        reasons: One sentence per consideration, in order.
        p_value: Chance of a gain this large if there were none; None when rows were not compared.
        aliases: What the winner is called now.
        version: Its version in the registry.
        at: When, ISO 8601.
    """

    task: str
    study: str
    promoted: bool
    winner: str | None
    winner_metric: float | None
    champion_metric: float | None
    metric: str
    reasons: tuple[str, ...]
    forced: bool = False
    champion: str | None = None
    action: Action = "promote"
    p_value: float | None = None
    aliases: tuple[str, ...] = ()
    version: int | None = None
    at: str = ""


@dataclass(frozen=True)
class Probe:
    """Inputs made by rule, not from data, and the logits an adapter gave for them in float32: an end-to-end check."""

    input_ids: tuple[tuple[int, ...], ...]
    logits: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Prediction:
    """An adapter's answer to one text.

    Args:
        label: Name of the most likely label; None for regression.
        score: Its probability; the predicted number for regression.
    """

    text: str
    label: str | None
    score: float


@dataclass(frozen=True)
class Manifest:
    """`manifest.json` of an adapter folder: what it is, what it fits, where it came from.

    Args:
        files: File name to sha256 of every other file in the folder.
        versions: Package name to version at training time.
        refits: The same recipe from other seeds.
        base_bytes: Size of the base's weights, for comparison.
        lora_parameters: What plain LoRA trains on the same modules at the same rank.
        factors: Key of every factor file that R stands on, to the checksum of its numbers.
    """

    task: Task
    base_model: BaseModelRef
    base_digest: str
    data_fingerprint: str
    study: str
    trial_id: str
    params: Mapping[str, Scalar]
    hyperparameters: Hyperparameters
    validation_metrics: Mapping[str, float]
    test_metrics: Mapping[str, float]
    size: AdapterSize
    probe: Probe
    versions: Mapping[str, str]
    created_at: str
    run_id: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    refits: tuple[Refit, ...] = ()
    base_bytes: int = 0
    lora_parameters: int = 0
    factors: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = 1


# ---- json ------------------------------------------------------------------------------------------------------------
RecordT = TypeVar("RecordT")


def to_json(record: Any, *, indent: int | None = None) -> str:
    """Return a record (or a list of them) as JSON with sorted keys."""
    return json.dumps(record, default=_plain, indent=indent, sort_keys=True)


def from_json(cls: type[RecordT], text: str | bytes) -> RecordT:
    """Rebuild a record from JSON, checking every field's type.

    Raises:
        pydantic.ValidationError: the text is not such a record.
    """
    return _adapter(cls).validate_json(text)  # type: ignore[no-any-return, arg-type]


@functools.cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter  # late: keeps `import loraxs_search` light

    return TypeAdapter(cls)  # a millisecond, and a journal holds thousands of reports


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a record")
