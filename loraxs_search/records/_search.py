"""How a search spends its budget, which of a trial's reports its adapter keeps, and its run in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from loraxs_search.records._literals import MAX_STATE_BYTES, Direction, Precision, Scalar, SearchDevice, Split
from loraxs_search.records._task import Task
from loraxs_search.records._trial import TrialReport


@dataclass(frozen=True)
class SearchPlan:
    """How a search spends its budget.

    Args:
        concurrent: Trials in flight at once; None means as many as the devices hold, counted anew as nodes come and
            go. An autoscaler starts nodes for those that do not fit.
        report_every: Steps between two reports; also ASHA's first rung.
        scheduler: A name of `loraxs_search.schedulers`: `asha` stops weak trials at rungs, `none` lets all finish.
        reduction_factor: ASHA keeps the best 1/reduction_factor at each rung.
        scheduler_params: What the scheduler takes beside that, by the names that it declares.
        sampler: A name of `loraxs_search.samplers`: what proposes params.
        sampler_params: What the sampler takes, by the names that it declares.
        time_budget_s: What the search may take, over all drivers, as `search.time_budget` says; None means no limit.
        max_failures: How often a trial may lose its host or node between two reports.
        pack_size: Trials that share one device; `auto` takes as many as fill it, 1 trains each trial unpacked.
        precision: Format the frozen base is held in; `auto` is bfloat16 where the hardware has it natively.
        device: What trials run on; `auto` is GPUs where the cluster has any, else CPUs.
        checkpoint: Which step of a trial becomes its adapter: the last, or the one with the best report.
        max_state_mb: Larger states of trials, in megabytes, stay on their node; losing it restarts the trial.
    """

    trials: int = 16
    max_steps: int = 160
    report_every: int = 40
    concurrent: int | None = None
    scheduler: str = "asha"
    reduction_factor: int = 2
    time_budget_s: float | None = None
    max_failures: int = 3
    pack_size: int | Literal["auto"] = "auto"
    precision: Precision = "auto"
    device: SearchDevice = "auto"
    seed: int = 0
    scheduler_params: Mapping[str, Scalar] = field(default_factory=dict)
    sampler: str = "tpe"
    sampler_params: Mapping[str, Scalar] = field(default_factory=dict)
    checkpoint: Literal["last", "best"] = "last"
    max_state_mb: float = MAX_STATE_BYTES / 1e6

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
        sign = 1.0 if self.direction == "maximize" else -1.0
        return max(reports, key=lambda report: (sign * report.metrics[self.metric], -report.step))


@dataclass(frozen=True)
class StudyDescription:
    """What people and views of MLflow's runs are shown of a study.

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
class SearchRun:
    """What MLflow's run of a search says: `params` of what it is, `tags` of what it runs on now."""

    space_yaml: str
    plan: SearchPlan
    params: Mapping[str, Scalar] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    facts: StudyDescription | None = None
