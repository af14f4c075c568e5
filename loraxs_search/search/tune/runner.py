"""Runs the search in Ray Tune."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, ProgressReporter, RunConfig, TuneConfig
from ray.tune.experiment import Trial
from ray.tune.stopper import Stopper

from loraxs_search.errors import ClusterError
from loraxs_search.records import SearchPlan
from loraxs_search.search.cluster import runtime_env
from loraxs_search.search.tune.deadline import Deadline
from loraxs_search.search.tune.scheduler import TuneScheduler
from loraxs_search.search.tune.searcher import StudySearcher
from loraxs_search.search.tune.trainable import TrialTrainable


class DeadlineStopper(Stopper):
    """Stops each trial at its first report after the deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled into snapshots that we never read

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._deadline.is_over

    def stop_all(self) -> bool:
        return False


# Tune registers what it runs in a dictionary of the process, which it walks through: studies that are searched
# together set up one after the other, until their loops begin.
_SETTING_UP = threading.Lock()


# A node that has died is offered to its trials until the cluster has noticed: all failures until then are one loss.
ONE_LOSS_S = 60.0


_MIN_WAITING = 1000  # trials that Tune may have waiting, whatever the plan says

_SETUP_FAILED = re.compile(r"runtime env.*\n\[Node ([^\]]+)\]")


class _SilentReporter(ProgressReporter):
    """Reports nothing: in a notebook Tune would clear the output of the cell, where our own view is drawn."""

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Trial], done: bool, *sys_info: Any) -> None:
        """Is never called."""


class _StoppedError(Exception):
    """Ends Tune's loop."""


class LoopWatch(Callback):
    """Ends Tune's loop cleanly once it is time: trials keep their last state and stay unfinished.

    Tune itself can be stopped by a signal in the main thread only, and its stoppers wait for each trial's report.

    It ends too when the deadline is over and no trial runs, as when all wait for nodes that do not come.

    Args:
        is_over: Asked at each turn of the loop.
        begun: Called at each turn of the loop.
        unfit: Called with what is wrong when a node cannot run trials, as one that joined late may not.
        deadline: When the time budget is used up; None where there can be none.
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

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled into snapshots that we never read

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
    searcher: StudySearcher,
    scheduler: TuneScheduler,
    plan: SearchPlan,
    storage: Path,
    deadline: Deadline,
    stop: threading.Event,
) -> None:
    """Run trials until the searcher has no more or has a fatal error, or `stop` is set.

    Results are in the study folder, not in Tune's grid.
    """

    def over() -> bool:
        return stop.is_set() or searcher.fatal_error is not None

    def begun() -> None:
        setting_up.close()
        searcher.turn()

    with contextlib.suppress(_StoppedError), contextlib.ExitStack() as setting_up:
        setting_up.enter_context(_SETTING_UP)
        tuner = tune.Tuner(
            TrialTrainable,
            tune_config=TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,
                # The searcher proposes no more than fits now; this bounds what Tune has waiting. People may add trials.
                max_concurrent_trials=max(plan.trials, _MIN_WAITING),
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex,  # every run of the driver is a fresh experiment to Tune
                storage_path=str(storage),
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False),  # the StudyKeeper keeps snapshots
                failure_config=FailureConfig(max_failures=plan.max_failures),
                stop=DeadlineStopper(deadline),
                callbacks=[LoopWatch(over, begun, searcher.break_off, deadline)],
                verbose=0,
                progress_reporter=_SilentReporter(),
            ),
        )
        tuner.fit()
