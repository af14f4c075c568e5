"""Runs the search in Ray Tune: its classes as a search needs them, and what Tune has no public way for.

Tune pickles its searcher, scheduler, stopper and callbacks into snapshots that nobody reads: `Unpickled` leaves them
empty. A callback that raises ends its loop. Which node could not make its environment stands in a file alone.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, ProgressReporter, RunConfig, TuneConfig
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from loraxs_search.errors import ClusterError, LoraxsError
from loraxs_search.records import SearchPlan, TrialReport, from_json
from loraxs_search.schedulers import Scheduler
from loraxs_search.search.cluster import ray_private, runtime_env
from loraxs_search.search.tune.trainable import REPORT, SPEC, TrialTrainable
from loraxs_search.steering.state import Deadline

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


# Tune registers what it runs in a dictionary of the process, which it walks through: studies that are searched
# together set up one after the other, until their loops begin.
_SETTING_UP = threading.Lock()

# A node that has died is offered to its trials until the cluster has noticed: all failures until then are one loss.
ONE_LOSS_S = 60.0

_MIN_WAITING = 1000  # trials that Tune may have waiting, whatever the plan says

_SETUP_FAILED = re.compile(r"runtime env.*\n\[Node ([^\]]+)\]")


class Unpickled:
    """Leaves what Tune pickles into its snapshots empty: nobody reads them, the study folder is the truth."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TuneScheduler(Unpickled, FIFOScheduler):
    """Asks a scheduler about each report; trials are known by their ids in the study, not by Tune's.

    Args:
        metric: What running trials are compared by.
        abort: Called when the scheduler raises: Tune would take that for a failure of the trial.
        should_leave: Says of a trial that has reported whether a user wants it to train no further.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        metric: str,
        abort: Callable[[LoraxsError], None],
        should_leave: Callable[[str], bool] = lambda _: False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scheduler, self._study_metric, self._abort = scheduler, metric, abort
        self._should_leave = should_leave

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Stop the trial when its scheduler says so; a result without a report is a failure, which Tune ends."""
        if REPORT not in result:
            return self.CONTINUE
        report = from_json(TrialReport, result[REPORT])
        try:
            reason = self._scheduler.report(report, self._study_metric)
        except Exception as error:  # noqa: BLE001  # a scheduler from elsewhere may raise anything
            trial_id = json.loads(trial.config[SPEC])["trial_id"]
            self._abort(
                LoraxsError(
                    f"The scheduler {self._scheduler.name!r} failed on a report of trial {trial_id}:"
                    f" {type(error).__name__}: {error}.",
                    hint="fix the scheduler, then continue with `loraxs-search resume`",
                )
            )
            return self.CONTINUE
        return self.CONTINUE if reason is None and not self._should_leave(report.trial_id) else self.STOP

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        """Record a last report, about which Tune does not ask; a repeated one changes nothing."""
        self.on_trial_result(tune_controller, trial, result)


class _DeadlineStopper(Unpickled, Stopper):
    """Stops each trial at its first report after the deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._deadline.is_over

    def stop_all(self) -> bool:
        return False


class _SilentReporter(ProgressReporter):
    """Reports nothing: in a notebook Tune would clear the output of the cell, where our own view is drawn."""

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Trial], done: bool, *sys_info: Any) -> None:
        """Is never called."""


class _StoppedError(Exception):
    """Ends Tune's loop."""


class LoopWatch(Unpickled, Callback):
    """Ends Tune's loop cleanly once it is time: trials keep their last state and stay unfinished.

    Tune itself can be stopped by a signal in the main thread only, and its stoppers wait for each trial's report.

    It ends too when the deadline is over and no trial runs, as when all wait for nodes that do not come.

    Args:
        is_over: Asked at each step of the loop.
        begun: Called at each step of the loop.
        unfit: Called with what is wrong when a node cannot run trials, as one that joined late may not.
        deadline: When the time budget is used up; None if there can be none.
    """

    def __init__(
        self,
        is_over: Callable[[], bool],
        begun: Callable[[], None],
        unfit: Callable[[ClusterError], None],
        deadline: Deadline | None = None,
    ) -> None:
        self._is_over, self._begun, self._unfit, self._deadline = is_over, begun, unfit, deadline
        self._lost_at: dict[str, float] = {}

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        self._begun()
        late = self._deadline is not None and self._deadline.is_over
        if self._is_over() or (late and not any(trial.status == "RUNNING" for trial in trials)):
            raise _StoppedError

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Count losses of a trial's process that follow one another closely as one; report a node that is unfit."""
        if (error := _setup_error(trial)) is not None:
            self._unfit(error)
        now = time.monotonic()
        if now - self._lost_at.get(trial.trial_id, -ONE_LOSS_S) < ONE_LOSS_S:
            trial.max_failures += 1
        else:
            self._lost_at[trial.trial_id] = now


def _setup_error(trial: Trial) -> ClusterError | None:
    """Return what is wrong with the node that could not make a trial's environment, if that is why it was lost.

    Tune hands the error itself to nobody; it has just been written to the end of the trial's file.
    """
    if not trial.error_file or not Path(trial.error_file).exists():
        return None
    _, _, failure = Path(trial.error_file).read_text(encoding="utf-8").rpartition("\nFailure # ")
    node = _SETUP_FAILED.search(failure)
    if node is None:
        return None
    why = runtime_env.setup_problem(failure)
    message = f"Every node must be able to make the search's environment, but {node[1]} is not: {why}"
    return ClusterError(message, hint=runtime_env.SETUP_HINT)


def run_tuner(
    searcher: Searcher,
    scheduler: TuneScheduler,
    plan: SearchPlan,
    storage: Path,
    deadline: Deadline,
    *,
    is_over: Callable[[], bool],
    on_loop_step: Callable[[], None],
    abort: Callable[[LoraxsError], None],
) -> None:
    """Run trials until the searcher has no more, or `is_over`; results are in the study folder, not in Tune's grid.

    Args:
        on_loop_step: Called at each step of Tune's loop.
        abort: Called when a node cannot run trials.
    """

    def begun() -> None:
        setting_up.close()
        on_loop_step()

    ray_private.outlive_memory_monitor()
    with contextlib.suppress(_StoppedError), contextlib.ExitStack() as setting_up:
        setting_up.enter_context(_SETTING_UP)
        tuner = tune.Tuner(
            TrialTrainable,
            tune_config=_tune_config(searcher, scheduler, plan),
            run_config=_run_config(plan, storage, deadline, LoopWatch(is_over, begun, abort, deadline)),
        )
        tuner.fit()


def _tune_config(searcher: Searcher, scheduler: TuneScheduler, plan: SearchPlan) -> TuneConfig:
    return TuneConfig(
        search_alg=searcher,
        scheduler=scheduler,
        num_samples=-1,
        # The searcher proposes no more than fits now; this bounds what Tune has waiting. People may add trials.
        max_concurrent_trials=max(plan.trials, _MIN_WAITING),
        reuse_actors=True,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


def _run_config(plan: SearchPlan, storage: Path, deadline: Deadline, watch: LoopWatch) -> RunConfig:
    return RunConfig(
        name=uuid.uuid4().hex,  # every run of the driver is a fresh experiment to Tune
        storage_path=str(storage),
        checkpoint_config=CheckpointConfig(checkpoint_at_end=False),  # the SnapshotStore keeps snapshots
        failure_config=FailureConfig(max_failures=plan.max_failures),
        stop=_DeadlineStopper(deadline),
        callbacks=[watch],
        verbose=0,
        progress_reporter=_SilentReporter(),
    )
