"""Runs the search in Ray Tune: its classes as a search needs them, and what Tune has no public way for.

Tune pickles its searcher, scheduler, stopper and callbacks into snapshots that nobody reads: `Unpickled` leaves them
empty. A callback that raises ends its loop. Only a file says which node could not make its environment.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback, CheckpointConfig
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment, Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher, SearchGenerator
from ray.tune.stopper import Stopper

from loraxs_search.errors import ClusterError, LoraxsError
from loraxs_search.records.codec import from_json
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialReport
from loraxs_search.schedulers._base import Scheduler
from loraxs_search.search.cluster import ray_private, runtime_env
from loraxs_search.search.tune.advancer import REPORT
from loraxs_search.search.tune.slots import RESOURCES, SPEC, Advancers, SlotManager, TrialTrainable
from loraxs_search.steering.state import Deadline

# Tune registers what it runs in a dictionary of the process, which it walks through: studies that are searched
# together set up one after the other.
_SETTING_UP = threading.Lock()

# A node that has died is offered to its trials until the cluster has noticed: all failures until then are one loss.
ONE_LOSS_S = 60.0

WAIT_S = 15.0  # without a slot for any trial, until it is asked why
GRACE_S = 300.0  # after the deadline, for the last reports of trials that run; longer where reports take long

_MIN_WAITING = 1000  # trials that Tune may have waiting, whatever the plan says

_SETUP_FAILED = re.compile(r"runtime env.*\n\[Node ")


class Unpickled:
    """Leaves what Tune pickles into its snapshots empty: nobody reads them, the study folder is the truth."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TuneScheduler(Unpickled, FIFOScheduler):
    """Asks a scheduler about each report; trials are known by their ids in the study, not by Tune's.

    Args:
        metric: What running trials are compared by.
        abort: Called when the scheduler raises: Tune would take that for a failure of the trial.
        is_stopping: Says of a trial that has reported whether a user wants it to train no further.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        metric: str,
        abort: Callable[[LoraxsError], None],
        is_stopping: Callable[[str], bool] = lambda _: False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scheduler, self._study_metric, self._abort = scheduler, metric, abort
        self._is_stopping = is_stopping
        self._places: dict[str, int] = {}
        self._place = itertools.count()

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        self._places[trial.trial_id] = next(self._place)

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """Return the trial that has waited longest, as Tune's own method does, but without a pass over ended trials."""
        waiting = [trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING]
        return min(waiting, key=lambda trial: self._places[trial.trial_id], default=None)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Stop the trial when its scheduler says so; a result without a report is a failure, which Tune ends."""
        if REPORT not in result:
            return self.CONTINUE
        report = from_json(TrialReport, result[REPORT])
        try:
            reason = self._scheduler.report(report, self._study_metric)
        except Exception as error:  # noqa: BLE001  # a scheduler from elsewhere may raise anything
            self._abort(
                LoraxsError(
                    f"The scheduler {self._scheduler.name!r} failed on a report of trial {_study_id(trial)}:"
                    f" {type(error).__name__}: {error}.",
                    hint="fix the scheduler, then continue with `loraxs-search resume`",
                )
            )
            return self.CONTINUE
        return self.CONTINUE if reason is None and not self._is_stopping(report.trial_id) else self.STOP

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        """Record a last report, about which Tune does not ask; a repeated one changes nothing."""
        self.on_trial_result(tune_controller, trial, result)


def _study_id(trial: Trial) -> str:
    """Return the id of a trial in its study."""
    return str(json.loads(trial.config[SPEC])["trial_id"])


class _DeadlineStopper(Unpickled, Stopper):
    """Stops each trial at its first report after the deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._deadline.is_over

    def stop_all(self) -> bool:
        return False


class _StoppedError(Exception):
    """Ends Tune's loop."""


class LoopWatch(Unpickled, Callback):
    """Ends Tune's loop cleanly once it is time: trials keep their last state and stay unfinished.

    Tune itself can be stopped by a signal in the main thread only, and its stoppers wait for each trial's report.

    It ends too when the deadline is over and no trial runs, as when all wait for nodes that do not come; and when a
    trial has not reported for long after the deadline, since its host may be stuck. A report may take twice as long as
    any before it, or where there was none, as long as the loop ran; `GRACE_S` at least.

    Args:
        is_over: Asked at each step of the loop.
        on_loop_step: Called at each step of the loop.
        unfit: Called with what is wrong when a node cannot run trials, as one that joined late may not.
        deadline: When the time budget is used up; None if there can be none.
        overdue: Called with the ids of the trials that the loop has waited for in vain.
        ask_anew: Called now and then with what a waiting trial asks for, and whether others have slots; returns whether
            the loop is to end, so that trials ask for what there is now.
    """

    def __init__(
        self,
        is_over: Callable[[], bool],
        on_loop_step: Callable[[], None],
        unfit: Callable[[ClusterError], None],
        deadline: Deadline | None = None,
        overdue: Callable[[list[str]], None] = lambda _: None,
        ask_anew: Callable[[Mapping[str, float], bool], bool] = lambda _, __: False,
    ) -> None:
        self._is_over, self._on_loop_step, self._unfit, self._deadline = is_over, on_loop_step, unfit, deadline
        self._overdue, self._ask_anew = overdue, ask_anew
        self.holds_slots: Callable[[], bool] = lambda: True
        self._lost_at: dict[str, float] = {}
        self._began_at = time.monotonic()
        self._heard_at: dict[str, float] = {}  # when trials that run were last heard of
        self._longest_s: float | None = None  # from one report to the next
        self._late_since: float | None = None
        self._waiting_since: float | None = None
        self._others_have_slots = False

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        self._on_loop_step()
        if self._is_over() or self._is_late(trials) or self._is_stranded(trials):
            raise _StoppedError

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        self._heard_at[trial.trial_id] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: object
    ) -> None:
        """Note how long a report may take."""
        now = time.monotonic()
        took_s = now - self._heard_at.get(trial.trial_id, self._began_at)
        self._heard_at[trial.trial_id], self._longest_s = now, max(self._longest_s or 0.0, took_s)

    def _is_late(self, trials: list[Trial]) -> bool:
        """Whether the deadline is over, and nobody waits for a report that may still come."""
        if self._deadline is None or not self._deadline.is_over:
            self._late_since = None
            return False
        now, running = time.monotonic(), [trial for trial in trials if trial.status == "RUNNING"]
        self._late_since = now if self._late_since is None else self._late_since
        report_s = self._late_since - self._began_at if self._longest_s is None else 2 * self._longest_s
        if running and now - self._late_since <= max(GRACE_S, report_s):
            return False
        if running:
            self._overdue([_study_id(trial) for trial in running])
        return True

    def _is_stranded(self, trials: list[Trial]) -> bool:
        """Whether trials wait for slots that none of the nodes of now can have."""
        pending = [trial.config[RESOURCES] for trial in trials if trial.status == "PENDING"]
        others_did, self._others_have_slots = self._others_have_slots, self.holds_slots()
        if not pending or others_did != self._others_have_slots:
            self._waiting_since = None
        if not pending:
            return False
        now = time.monotonic()
        self._waiting_since = now if self._waiting_since is None else self._waiting_since
        if now - self._waiting_since < WAIT_S:
            return False
        self._waiting_since = now
        different = [asked for place, asked in enumerate(pending) if asked not in pending[:place]]
        return any(self._ask_anew(asked, self._others_have_slots) for asked in different)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Count losses of a trial's host that follow one another closely as one; report a node that is unfit."""
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
    return runtime_env.setup_error(failure) if _SETUP_FAILED.search(failure) else None


def run_tuner(
    searcher: Searcher,
    scheduler: TuneScheduler,
    plan: SearchPlan,
    advancers: Advancers,
    storage: Path,
    deadline: Deadline,
    watch: LoopWatch,
) -> None:
    """Run trials until the searcher has no more or `watch` ends the loop; results are in the study folder.

    This is what `Tuner.fit` does, which takes no slots. It starts no reporter, handles no signals, and writes no
    snapshot at the end: nobody reads it.
    """
    ray_private.outlive_lost_processes()
    slots, search = SlotManager(), SearchGenerator(searcher)
    watch.holds_slots = lambda: slots.num_held > 0
    with _SETTING_UP:
        experiment = _experiment(plan, storage, deadline)
        search.add_configurations([experiment])
    controller = TuneController(
        search_alg=search,
        scheduler=scheduler,
        stopper=experiment.stopper,
        callbacks=[watch],
        trial_checkpoint_config=experiment.checkpoint_config,
        storage=experiment.storage,
        reuse_actors=True,
        resource_manager_factory=lambda: slots,
    )
    # The searcher proposes no more than fits now; this bounds what Tune has waiting. People may add trials.
    controller.update_max_pending_trials(max(plan.trials, _MIN_WAITING))
    with contextlib.closing(advancers) as slots.advancers, contextlib.suppress(_StoppedError):
        try:
            while not controller.is_finished():
                controller.step()
        finally:
            slots.clear()  # type: ignore[no-untyped-call]  # not in Ray


def _experiment(plan: SearchPlan, storage: Path, deadline: Deadline) -> Experiment:
    return Experiment(
        uuid.uuid4().hex,  # every run of the driver is a fresh experiment to Tune
        TrialTrainable,
        stop=_DeadlineStopper(deadline),
        num_samples=sys.maxsize,
        storage_path=str(storage),
        checkpoint_config=CheckpointConfig(checkpoint_at_end=False),  # the SnapshotStore keeps snapshots
        trial_dirname_creator=lambda trial: trial.trial_id,
        max_failures=plan.max_failures,
    )
