"""What happens in a search, as programs and views learn of it: one record an event, one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from loraxs_search.records._command import NOT_STEERED, SteeringStatus
from loraxs_search.records._literals import Direction, Scalar, Split
from loraxs_search.records._task import DataReport
from loraxs_search.records._trial import TrialState

EVENT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class _Event:
    """What all events have.

    Args:
        study: None in `phase` and `warning` before the study has its name.
        at: When, seconds since 1970.
        version: Of the form of events. Fields are added without a new one; a field that changes or goes has a new one.
    """

    study: str | None
    at: float
    version: int = EVENT_VERSION


@dataclass(frozen=True, kw_only=True)
class PhaseEvent(_Event):
    """Other work than training trials begins, or has got further.

    Args:
        text: What is being done, in a few words.
        done, total: How much of it, in `unit`; None where that is not counted.
    """

    text: str
    done: int | None = None
    total: int | None = None
    unit: str = ""
    event: Literal["phase"] = "phase"


@dataclass(frozen=True, kw_only=True)
class SearchStartedEvent(_Event):
    """Trials are about to train, for the first time or again after an interruption.

    Args:
        metric: What trials are compared by.
        num_trials: Trials that the search will end with.
        num_refits: Trainings of the best trials from new seeds that follow, at most.
        report_every: Steps between two reports of a trial.
        device, dtype: Of the first host.
        num_slots: Trials at once. `slots` has those of each node, by its address.
        why_slots: Why so many; empty where that was asked for.
        time_left_s: What is left of the time budget for trials; None where there is none.
        notes: What of the space may not be what was meant.
        steering: What people have asked of the search so far.
    """

    study: str
    task: str
    metric: str
    direction: Direction
    num_trials: int
    max_steps: int
    report_every: int
    num_refits: int
    device: str
    dtype: str
    num_slots: int
    slots: Mapping[str, int] = field(default_factory=dict)
    why_slots: str = ""
    time_left_s: float | None = None
    notes: tuple[str, ...] = ()
    steering: SteeringStatus = NOT_STEERED
    event: Literal["search_started"] = "search_started"


@dataclass(frozen=True, kw_only=True)
class DataReadEvent(_Event):
    """The rows of the task are read, and what is known of them; once for a study.

    Args:
        metric: The task's.
        num_rows: Of each split, of validation those that reports score.
    """

    study: str
    metric: str
    num_rows: Mapping[Split, int]
    report: DataReport
    event: Literal["data_read"] = "data_read"


@dataclass(frozen=True, kw_only=True)
class TrialStartedEvent(_Event):
    """A trial was proposed with these params."""

    study: str
    trial: str
    params: Mapping[str, Scalar]
    event: Literal["trial_started"] = "trial_started"


@dataclass(frozen=True, kw_only=True)
class TrialReportedEvent(_Event):
    """A trial was scored on validation rows after `step` steps.

    Args:
        device_s: Seconds of computation that it has taken so far.
        num_tokens: Training tokens that it has seen so far.
        stored_bytes: Of its adapter and head, as stored.
        host: Address of its node, and its device where the node has several; empty where that is not known.
    """

    study: str
    trial: str
    step: int
    metrics: Mapping[str, float]
    train_loss: float
    device_s: float
    num_tokens: int
    stored_bytes: int
    host: str = ""
    event: Literal["trial_reported"] = "trial_reported"


@dataclass(frozen=True, kw_only=True)
class TrialEndedEvent(_Event):
    """A trial trained all its steps, was stopped early, or failed."""

    study: str
    trial: str
    state: TrialState
    reason: str
    event: Literal["trial_ended"] = "trial_ended"


@dataclass(frozen=True, kw_only=True)
class WarningEvent(_Event):
    """Something that people should know; the search goes on."""

    text: str
    event: Literal["warning"] = "warning"


@dataclass(frozen=True, kw_only=True)
class SteeredEvent(_Event):
    """Somebody has sent a command, which was answered so; or the search waits for one.

    Args:
        status: What commands have come to now; None in events of older versions.
    """

    study: str
    text: str
    status: SteeringStatus | None = None
    event: Literal["steered"] = "steered"


@dataclass(frozen=True, kw_only=True)
class YardstickScoredEvent(_Event):
    """A simple model was scored on the validation rows."""

    study: str
    name: str
    metrics: Mapping[str, float]
    event: Literal["yardstick_scored"] = "yardstick_scored"


@dataclass(frozen=True, kw_only=True)
class CandidateScoredEvent(_Event):
    """A candidate was scored on all rows of a split: each on `validation`, the finalist on `test` too.

    Args:
        trial: A trial's id, or a refit's, such as `00002.1`.
    """

    study: str
    trial: str
    split: Literal["validation", "test"]
    metrics: Mapping[str, float]
    event: Literal["candidate_scored"] = "candidate_scored"


@dataclass(frozen=True, kw_only=True)
class SearchEndedEvent(_Event):
    """Nobody works on the study any more; always the last event.

    Args:
        state: `interrupted` also after an error; `loraxs-search resume` goes on then.
        notice: Why it ended before its budget was used, for people; empty where it was used.
        result: What `launch --json` prints; None where the search was interrupted.
    """

    state: Literal["finished", "interrupted"]
    notice: str = ""
    result: Mapping[str, Any] | None = None
    event: Literal["search_ended"] = "search_ended"


@dataclass(frozen=True, kw_only=True)
class TrialsAdvancedEvent(_Event):
    """Trials have got further since their last reports; comes every few seconds, and only the latest is kept.

    Args:
        steps: That trials have taken, by trial, or by refit (`00004.1`); some may be missing.
    """

    study: str
    steps: Mapping[str, int]
    event: Literal["trials_advanced"] = "trials_advanced"


SearchEvent = (
    PhaseEvent
    | DataReadEvent
    | SearchStartedEvent
    | TrialStartedEvent
    | TrialReportedEvent
    | TrialEndedEvent
    | TrialsAdvancedEvent
    | WarningEvent
    | SteeredEvent
    | YardstickScoredEvent
    | CandidateScoredEvent
    | SearchEndedEvent
)
