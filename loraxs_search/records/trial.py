"""A trial: where it comes from, what it is to do, and what it reports."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraxs_search.records.codec import Basis, Head, HeadInit, LrSchedule, ParameterKind, Scalar, Sigma, StoredDtype
from loraxs_search.records.task import Identity


@dataclass(frozen=True)
class Proposal:
    """A trial as Optuna has it.

    Args:
        params: By the names that they are drawn by.
        distributions: What each was drawn from, in Optuna's JSON.
        attributes: The trial's system attributes, in which samplers keep their state.
    """

    params: Mapping[str, Scalar]
    distributions: Mapping[str, Mapping[str, Any]]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PeftSettings:
    """A method of PEFT's that a space names in `peft_methods`.

    Args:
        peft_type: PEFT's name of its config, such as VERA.
        fixed: Fields of the config that all trials share.
        searched: Fields that trials may draw, with the kind of their values; see `ParameterSpec`.
    """

    peft_type: str
    fixed: Mapping[str, Any]
    searched: Mapping[str, ParameterKind]


@dataclass(frozen=True)
class Hyperparameters:
    """Everything that decides a trial's numbers, modules resolved to full names.

    `rank`, `scale`, `sigma`, `basis`, `init_std` and `factor_rank` are LoRA-XS's own. What another method takes beside
    the parameters that all have is in `method_params`.

    Args:
        target_modules: Full names of the adapted linear layers, in model order.
        rank: 0 where the method has none.
        scale: Factor of the update, alpha / r.
        warmup_ratio: Share of `max_steps` during which both learning rates rise linearly.
        adam_beta1: AdamW's decay of the gradient's running mean; `adam_beta2` that of its square's.
        max_grad_norm: Clip on the trial's whole gradient (R and head); 0 means no clip.
        factor_rank: Rank at which the factors are computed; the trial uses their first `rank` columns.
        method: A name of `loraxs_search.methods`, or one that the space gives to a method of PEFT's.
        method_params: The method's own parameters by name, defaults included.
        peft: What the name of the space stands for; None for a name of `loraxs_search.methods`.
        start_from: sha256 of the asset with the tensors of another adapter that it starts from.
        head_init: Where the head starts.
        linear_probe: sha256 of the asset with the head's output layer at its start; only with `head_init: probe`.
        stored_dtype: What adapter and head are rounded to whenever they are scored or stored; they train in float32.
    """

    target_modules: tuple[str, ...]
    learning_rate: float
    head_learning_rate: float
    rank: int = 0
    scale: float = 1.0
    sigma: Sigma = "input"
    basis: Basis = "top"
    head: Head = "full"
    init_std: float = 1e-5
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    lr_schedule: LrSchedule = "linear"
    warmup_ratio: float = 0.06
    max_grad_norm: float = 1.0
    batch_size: int = 16
    max_steps: int = 160
    seed: int = 0
    factor_rank: int | None = None
    method: str = "lora-xs"
    method_params: Mapping[str, Scalar] = field(default_factory=dict)
    peft: PeftSettings | None = None
    start_from: str | None = None
    head_init: HeadInit = "random"
    linear_probe: str | None = None
    stored_dtype: StoredDtype = "float32"

    def lr_factor(self, step: int) -> float:
        """Return the factor on both learning rates at an optimizer step, from 0: a resumed trial needs no other state.

        Linear rise over the first ceil(warmup_ratio * max_steps) steps, then `linear` or `cosine` decay to 0 at
        `max_steps`, or `constant`. The first step of a warm-up is not wasted on a rate of 0.
        """
        warmup = math.ceil(self.warmup_ratio * self.max_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.lr_schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, self.max_steps - warmup))
        return 0.5 * (1.0 + math.cos(math.pi * progress)) if self.lr_schedule == "cosine" else 1.0 - progress


@dataclass(frozen=True)
class TrialSpec:
    """One trial: its id within the study, the sampled params as people read them, and what they resolve to.

    Args:
        study: Tells trials of several studies apart that share a host.
        identity: What the study began with; a host that has loaded something else refuses the trial.
        snapshot_store: The actor that has the study's assets; a host asks it for those that its node lacks.
    """

    trial_id: str
    params: Mapping[str, Scalar]
    hyperparameters: Hyperparameters
    study: str = ""
    identity: Identity | None = None
    snapshot_store: str = ""

    @property
    def name(self) -> str:
        """Unique on a host."""
        return f"{self.study}/{self.trial_id}" if self.study else self.trial_id


class TrialState(enum.StrEnum):
    """The state of a trial; the last three are final and are Optuna's own words."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


@dataclass(frozen=True)
class AdapterSize:
    """What is stored: adapter **and** head.

    Args:
        r_parameters: Of the adapter without its head: R, or what another method trains in its place.
        stored_bytes: Of the adapter's file, names included.
        without_projection: Of the file without the projections that a seed or the base's own weights give back; None
            where it holds none.
    """

    r_parameters: int
    head_parameters: int
    stored_bytes: int
    without_projection: int | None = None


@dataclass(frozen=True)
class TrialReport:
    """Scores of a trial after `step` optimizer steps.

    Args:
        metrics: Validation metrics by name (`accuracy`, ...), finite.
        train_loss: Mean training loss since the report before.
        device_s: Seconds of computation spent on this trial so far.
        scoring_s: Of these, what the scores of this report took; 0 if that was not measured.
        num_tokens: Real (unpadded) training tokens seen so far.
        peers: Trials of the study that were scored in the same evaluation: id to (step, value of the metric that
            running trials are compared by).
        host: The node and device that trained it, for display; empty if that was not recorded.
    """

    trial_id: str
    step: int
    metrics: Mapping[str, float]
    train_loss: float
    device_s: float
    num_tokens: int
    size: AdapterSize
    peers: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    host: str = ""
    scoring_s: float = 0.0


@dataclass(frozen=True)
class TrialRecord:
    """All that is known of a trial.

    Args:
        reason: Why it ended, as text for display.
        command: Id of the command that asked for it; empty where the search proposed it.
        lineage: Id of the trial whose params it was added with; empty if there is none.
        reported_at: When each report was recorded, seconds since 1970.
        worked_s: Seconds from its start to its end in which a driver was at work; None while it has not ended.
        is_cut: Whether the time budget ended it: it continues once the search has more time.
    """

    trial_id: str
    params: Mapping[str, Scalar]
    state: TrialState
    reason: str = ""
    reports: tuple[TrialReport, ...] = ()
    started_at: float = 0.0
    ended_at: float | None = None
    command: str = ""
    lineage: str = ""
    reported_at: tuple[float, ...] = ()
    worked_s: float | None = None
    is_cut: bool = False

    @property
    def step(self) -> int:
        """The step of its last report; 0 before the first."""
        return self.reports[-1].step if self.reports else 0
