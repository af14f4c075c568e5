"""The contract of a host: what trains trials on one device, between the search's engine and the numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from loraxs_search.records.host import Answers, Confirmation, HostInfo, LinearProbe
from loraxs_search.records.literals import Basis, Split
from loraxs_search.records.promotion import Baseline
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialReport, TrialSpec


class Host(Protocol):
    """Holds one base and its factors on one device, and trains trials on them.

    Who calls: one `HostActor` in its own process, whose callers are trials and the driver. A host is built for a
    base and a first task; building it loads both.

    Threads: called from many threads at once; each call blocks until it is answered, and waiting trials share passes.
    After `close` only `close` is called.

    Tasks: it serves any number of tasks that load its base in the same way but for the number of outputs. What cannot
    share passes, a method or a layer, only trials of the task that it began with can have. Every call on behalf of a
    trial names the trial's task.

    What is kept: a host may keep trials, rows and factors between calls, and owns none of them. Each `advance` returns
    the whole state of its trial as a snapshot, and the caller's snapshot decides: where the host has the
    same trial at another step, or with other hyperparameters, it restores the caller's. So a host may die at any
    time, a call may be repeated, on another host too, and the numbers are the same: on one device, at one number of
    threads and in the same company to the last bit, otherwise within the rounding of float32.

    Raises, in any call: an error of one trial is raised to its own caller, and does not affect the next call.
    The kind of `LoraxsError` says whose fault it is:

    - BaseModelError, TaskDataError: the base or the rows are not what the node must have. The engine counts that as
      the node's fault where another host has had both.
    - FactorMismatchError: the trial began beside other singular vectors than this machine computes.
    - TrialDivergedError: the trial's loss, gradient or a metric is not finite.
    - TrialCancelledError: `cancel` named the trial.
    - RankError, TargetModulesError: the trial asks for what the base does not have.
    - StudyError: a snapshot cannot be read.
    - UsageError: the trial cannot share passes, and is of another task than the host's first one.

    Any other exception is the trial's own failure too, and is reported with its type.

    A host knows trials by `TrialSpec.name`, unique across studies. Metrics are plain floats, finite. Snapshots are
    safetensors with the trial's reports in the header (`trial.Snapshot`).
    `tests/contracts/test_hosts.py` runs on every host.
    """

    def info(self, task: Task, *, anew: bool = False) -> HostInfo:
        """Describe base, rows and device; a task that is new to the host is read first.

        Args:
            anew: Read the rows again; where they differ from those in use, trials that start or resume later use
                the new ones.
        """
        ...

    def base_changed(self) -> bool:
        """Whether the base's weights on disk are others than those that were loaded."""
        ...

    def decompose(self, names: Sequence[str], rank: int, basis: Basis) -> None:
        """Prepare the factors of these layers; quick where they are on disk. Changes no result."""
        ...

    def advance(self, spec: TrialSpec, until: int, snapshot: bytes | None, task: Task) -> tuple[TrialReport, bytes]:
        """Train a trial up to a step, score the validation rows, and return the report and the state to keep.

        Args:
            until: Step to stop at; the trial's `max_steps` where that is less. A trial that is at that step already is
                scored without training.
            snapshot: The trial's last state; None starts at step 0.
        Returns:
            The report of that step; trials of the study that were scored in the same evaluation are its peers, with
            what they store. And a snapshot that holds all of the trial's reports, this one last.
        """
        ...

    def cancel(self, names: Collection[str]) -> None:
        """Have the trials of these names that are being advanced end before their next step; returns at once.

        Their callers get a TrialCancelledError. Of other names nothing is remembered: who wants to be sure asks again.

        Args:
            names: `TrialSpec.name` of each.
        """
        ...

    def steps(self) -> Mapping[str, int]:
        """Return the steps that trials which are being advanced have taken so far, by name; returns at once.

        It is for display: a trial that waits, loads or is scored may be missing, or a step late.
        """
        ...

    def confirm(self, spec: TrialSpec, snapshot: bytes, task: Task) -> Confirmation:
        """Return a trained adapter's files, and reference logits of the base with it in the checkpoint's precision."""
        ...

    def answer(self, spec: TrialSpec, snapshot: bytes, rows: range, task: Task) -> Answers:
        """Return a trained adapter's answers to consecutive test rows, in the checkpoint's precision.

        They are answers whatever the task's reports are scored by.

        Raises:
            TrialDivergedError: an answer is not finite.
        """
        ...

    def answer_without_adapter(self, split: Split, rows: range, shots: int, task: Task) -> Answers:
        """Return the answers of the base without an adapter to consecutive rows, in the checkpoint's precision.

        Args:
            rows: Of `split` as the task scores it, validation or test.
            shots: Worked examples in each prompt; one of those that the task's kind declares.
        Raises:
            TrialDivergedError: an answer is not finite.
        """
        ...

    def baselines(self, task: Task) -> tuple[Baseline, ...]:
        """Return what simple models reach on a task's rows, while trials go on."""
        ...

    def linear_probe(self, task: Task) -> LinearProbe:
        """Return the output layer that heads of a task may start from, fitted on the untouched base within seconds."""
        ...

    def factor_file(self, key: str) -> bytes:
        """Return a factor file, as `Confirmation.factors` names it."""
        ...

    def close(self) -> None:
        """Release the host's resources once all waiting callers are answered; a second call does nothing."""
        ...
