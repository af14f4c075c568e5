"""How a search spends its budget, which of a trial's reports its adapter keeps, and what is asked of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from loraxs_search.records.literals import (
    DERIVED,
    SECTION,
    Count,
    Direction,
    Law,
    Precision,
    Scalar,
    SearchDevice,
    Text,
    sign_of,
)
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialReport


@dataclass(frozen=True)
class Command:
    """One request to a search.

    Args:
        command_id: Chosen by the sender and never used twice: a search carries out each id once.
        verb: A name of `loraxs_search.steering`.
        trial_ids: The trials that it names, without doubles.
        arguments: Options of the verb by name.
        params: Values that `--set` gives, by the names of a trial's params.
        sent_by: Who sent it, as shown to users.
        issued_at: When, seconds since 1970.
    """

    command_id: str
    verb: str
    trial_ids: tuple[str, ...] = ()
    arguments: Mapping[str, Scalar] = field(default_factory=dict)
    params: Mapping[str, Scalar] = field(default_factory=dict)
    sent_by: str = ""
    issued_at: float = 0.0


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
# Each unit at most once, the largest first; what is looked for ahead keeps out blanks before it, and the empty text.
_DURATION = r"(?=\d)" + "".join(rf"(?:\s*(\d+(?:\.\d+)?)\s*{unit})?" for unit in _UNITS)


def seconds_of(text: str) -> float | None:
    """Return the seconds of `90s`, `10m`, `1.5d` or `1h30m`; None for any other text."""
    match = re.fullmatch(_DURATION, text)
    if match is None:
        return None
    return sum(float(number) * unit for number, unit in zip(match.groups("0"), _UNITS.values(), strict=True))


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    if (seconds := seconds_of(value)) is None:
        raise ValueError("must be seconds, or a number with a unit (90s, 10m, 1h30m, 1d)")
    return seconds


def _pack_size(value: object) -> object:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError("must be a whole number of at least 1, or auto")
    return value


_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_TIME = {"$comment": "duration", "anyOf": [_POSITIVE, {"type": "string", "pattern": f"^{_DURATION}$"}]}
_PACK_SIZE = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}


@dataclass(frozen=True)
class SearchPlan:
    """How to search: how many trials, how long each one trains, and which of them stop early."""

    __pydantic_config__ = SECTION

    metric: Text | None = None
    """Metric by which running trials are compared. The default is the task's own, or `loss` for `text-generation`.
    Candidates are always compared by the task's metric.
    """
    checkpoint: Literal["last", "best"] = "last"
    """Which step of a trial becomes its adapter: the `last` one, or the one with the `best` report."""
    trials: Count = 16
    """Number of trials to propose. `extend` raises it; trials from `add` come on top."""
    max_steps: Count = 160
    """Optimizer steps of the longest trial."""
    report_every: Count = 40
    """Steps between two reports. Each report scores the trial and may stop it."""
    concurrent: Count | None = None
    """Most trials that run at once. The default is as many as fit; an autoscaler starts nodes for those that wait."""
    scheduler: str = "asha"
    """Which trials stop early."""
    sampler: str = "tpe"
    """What proposes params."""
    time_budget: Annotated[float, Law(_seconds, _TIME, gt=0)] | None = None
    """What the whole search may take, such as `90s`, `1h30m` or `1d`; time before a `resume` counts. Trials stop at a
    report, or at their last one if the next is late, so early that refits, last scores and baselines fit by the speed
    measured so far; these get at most half. Refits that do not fit are left out, then candidates, and the search says
    so. Scores of the best trial and baselines are not left out, even if they take longer.
    """
    max_failures: Annotated[int, Law(ge=0)] = 3
    """How often a trial may lose its host or node between two reports, before it fails."""
    pack_size: Annotated[int | Literal["auto"], Law(_pack_size, _PACK_SIZE)] = "auto"
    """Trials that share a device. `auto` takes as many as fill it; 1 trains each trial unpacked."""
    precision: Precision = "auto"
    """Number format of the frozen base. `auto` is bfloat16 if the hardware has it."""
    device: SearchDevice = "auto"
    """What trains. `auto` takes GPUs if a node has any."""
    seed: Annotated[int, Law(ge=0, lt=2**32)] = 0
    """Random start of the sampler and of each trial. It repeats a whole search only with one trial at a time, since
    proposals depend on which trial reports first.
    """
    # A file has the keys that its scheduler and sampler declare beside those above.
    params: Mapping[str, Scalar] = field(default_factory=dict, metadata=DERIVED)

    def trial_seed(self, number: int) -> int:
        """Return the seed of the trial with this number: its start and the order of its rows."""
        return self.seed * 1_000_003 + number


@dataclass(frozen=True)
class CheckpointSelection:
    """Which step of a trial that has trained all its steps becomes its adapter.

    Args:
        metric: What reports are compared by; of equal ones the earlier is kept.
        checkpoint: `last` takes the last step, whatever its report.
    """

    metric: str
    direction: Direction
    checkpoint: Literal["last", "best"] = "last"

    @classmethod
    def of(cls, task: Task, plan: SearchPlan) -> CheckpointSelection:
        """Return the selection of a study."""
        return cls(task.search_metric, task.search_direction, plan.checkpoint)

    def select(self, reports: Sequence[TrialReport]) -> TrialReport:
        """Return the report of the step that is kept, of at least one."""
        if self.checkpoint == "last":
            return reports[-1]
        sign = sign_of(self.direction)
        return max(reports, key=lambda report: (sign * report.metrics[self.metric], -report.step))
