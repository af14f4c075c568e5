"""What happens in a search, as frozen records: one line of JSON each in the spool.

Every record carries the moment it happened (`at`, seconds since 1970): applying it later, or twice, gives the same run.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from loraxs_search.records import (
    FrontTrial,
    Hyperparameters,
    Lineage,
    Scalar,
    SearchPlan,
    Split,
    Task,
    TrialReport,
    TrialState,
    Yardstick,
    to_json,
)

SearchState = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class StudyFacts:
    """What people and views of the runs are shown of a study.

    Args:
        base_model: The base's id, as named.
        parameters: Names of what the space searches or sets, in its order.
        num_rows: Of each split.
    """

    task: Task
    base_model: str
    parameters: tuple[str, ...] = ()
    num_rows: Mapping[Split, int] = field(default_factory=dict)
    data_fingerprint: str = ""


@dataclass(frozen=True)
class SearchStarted:
    """A search starts, or goes on: `params` say what it is, `tags` on what it runs now."""

    at: float
    space_yaml: str
    plan: SearchPlan
    params: Mapping[str, Scalar] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    facts: StudyFacts | None = None
    event: Literal["search_started"] = "search_started"


@dataclass(frozen=True)
class TrialStarted:
    """A trial starts, or starts again elsewhere; its params may be another trial's, and so may be its state."""

    at: float
    trial_id: str
    params: Mapping[str, Scalar]
    hyperparameters: Hyperparameters | None
    lineage: Lineage | None = None
    event: Literal["trial_started"] = "trial_started"


@dataclass(frozen=True)
class TrialReported:
    """A trial reports; `first` marks the report that also records the adapter's size."""

    at: float
    report: TrialReport
    first: bool
    event: Literal["trial_reported"] = "trial_reported"


@dataclass(frozen=True)
class TrialFinished:
    """A trial ends in one of Optuna's final states.

    Args:
        kept_step: The step whose state became its adapter, where the study keeps the best one.
    """

    at: float
    trial_id: str
    state: TrialState
    reason: str
    wall_s: float
    device_s: float
    kept_step: int | None = None
    event: Literal["trial_finished"] = "trial_finished"


@dataclass(frozen=True)
class AdapterLogged:
    """An adapter lies in `folder`, to be kept as a logged model of a trial's run.

    Args:
        trial_id: The adapter's; a refit's is kept in the run of `run_of`, the trial it repeats.
        scores: Of a candidate, by split and metric, such as `test.accuracy`.
    """

    at: float
    trial_id: str
    folder: str
    run_of: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    event: Literal["adapter_logged"] = "adapter_logged"


@dataclass(frozen=True)
class YardsticksMeasured:
    """What simple models reach on the search's rows."""

    at: float
    yardsticks: tuple[Yardstick, ...]
    event: Literal["yardsticks_measured"] = "yardsticks_measured"


@dataclass(frozen=True)
class FrontFound:
    """The trials that no other one beats in score and stored bytes together, once all have ended.

    Args:
        gone: Trials of the front before, where the search went on, that are beaten now.
    """

    at: float
    trials: tuple[FrontTrial, ...]
    gone: tuple[str, ...] = ()
    event: Literal["front_found"] = "front_found"


@dataclass(frozen=True)
class ReportWritten:
    """The report of a search lies in a file, to be kept as an artifact of its run."""

    at: float
    path: str
    event: Literal["report_written"] = "report_written"


@dataclass(frozen=True)
class HostsMeasured:
    """How busy hosts are.

    Args:
        step: Seconds since the study was created: what MLflow draws it over.
        usage: Readings by the address of a node, under MLflow's names.
    """

    at: float
    step: int
    usage: Mapping[str, Mapping[str, float]]
    event: Literal["hosts_measured"] = "hosts_measured"


@dataclass(frozen=True)
class SearchFinished:
    """A search ends; numbers of `summary` become metrics, the rest tags."""

    at: float
    state: SearchState
    summary: Mapping[str, Scalar] = field(default_factory=dict)
    event: Literal["search_finished"] = "search_finished"


Event = (
    SearchStarted
    | TrialStarted
    | TrialReported
    | TrialFinished
    | AdapterLogged
    | YardsticksMeasured
    | FrontFound
    | ReportWritten
    | HostsMeasured
    | SearchFinished
)
FINAL = (TrialFinished, AdapterLogged, YardsticksMeasured, FrontFound, ReportWritten, SearchFinished)


def to_line(event: Event) -> bytes:
    """Return the event as one line of JSON, newline included."""
    return to_json(event).encode() + b"\n"


def from_line(line: bytes) -> Event:
    """Rebuild an event from its line.

    Raises:
        ValueError: the line is no event.
    """
    event: Event = _adapter().validate_json(line)
    return event


@functools.cache
def _adapter() -> Any:
    from pydantic import Field, TypeAdapter  # late: costs a tenth of a second

    return TypeAdapter(Annotated[Event, Field(discriminator="event")])
