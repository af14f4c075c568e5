"""The one loop of a search: trains the trials of a study in Ray Tune, through Tune's classes as a search needs them.

Tune pickles its searcher, scheduler and callbacks into snapshots that nobody reads: `_Unpickled` leaves them empty.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.exceptions import RuntimeEnvSetupError
from ray.tune import Callback
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from loraxs_search.errors import LoraxsError, SearchInterruptedError, StudyError, UsageError, counted
from loraxs_search.log.events import TrialContinued, TrialEnded, TrialReported, TrialStarted
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.trial import TrialReport, TrialState
from loraxs_search.schedulers._base import Scheduler
from loraxs_search.search.cluster.connection import own_error
from loraxs_search.search.hosts.pool import StudyActors
from loraxs_search.search.tune.advancer import FAILED, FATAL, REPORT, STEP
from loraxs_search.search.tune.proposer import Proposer
from loraxs_search.search.tune.slots import RESOURCES, SPEC, Advancers, SlotManager, make_controller
from loraxs_search.search.tune.time_budget import TimeBudget
from loraxs_search.steering import SteeredStudy

_logger = logging.getLogger(__name__)

# A node that has died is offered to its trials until the cluster has noticed: all failures until then are one loss.
ONE_LOSS_S = 60.0

WAIT_S = 15.0  # without a slot for any trial, until it is asked why
GRACE_S = 300.0  # after the deadline, for the last reports of trials that run; longer where reports take long

_SETUP_FAILED = re.compile(r"runtime env.*\n\[Node ")
_FEWEST, _SHARE = 5, 0.9  # trials that decide whether all fail; those of them that have to


def common_failure(reasons: Sequence[str], num_slots: int) -> tuple[int, str] | None:
    """Return how many of the latest trials failed for one reason, and that, when nearly all of them did.

    The latest are twice as many as run side by side, ten at least; to decide, half of them must be there: trials
    that fail do so sooner than others report.

    Args:
        reasons: Why each trial failed, latest last; empty if it reports.
    """
    enough = max(_FEWEST, num_slots)
    latest = reasons[-2 * enough :]
    if len(latest) < enough:
        return None
    reason, count = Counter(latest).most_common(1)[0]
    return (count, reason) if reason and count >= _SHARE * len(latest) else None


class _Unpickled:
    """Leaves what Tune pickles into its snapshots empty: nobody reads them, the study folder is the truth."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudySearcher(_Unpickled, Searcher):
    """Proposes unfinished trials first, then new ones; records how each ends.

    A trial's id is its Optuna number, so sampler, log, MLflow and Tune speak of the same trial. Proposals depend on
    the plan's seed, the number and the history only: a resumed search proposes what an undisturbed one would.

    Tune takes an exception of its searcher or scheduler for a failure of the trial. What keeps these from their work is
    in `fatal_error` instead: from then on nothing is recorded or proposed, and trials keep their last state.

    What people ask of it is in the study's state, which `apply_commands` acts by. Trials that people asked for come
    before new proposals, and on top of them.

    Args:
        study: Whoever changes its state calls `apply_commands`.
        is_stopped: Whether the driver is to end.
        take_commands: Called at each step of the loop.
    Attributes:
        fatal_error: What ends the search and is not a trial's fault.
        failing: Why the latest trials fail, where nearly all of them do.
        trial_ids: The trials in Tune by its own ids, which are others after each restart, in the order of proposal.
    """

    fatal_error: LoraxsError | None = None
    failing: str | None = None

    def __init__(
        self,
        proposer: Proposer,
        study: SteeredStudy,
        actors: StudyActors,
        scheduler: Scheduler,
        budget: TimeBudget,
        is_stopped: Callable[[], bool] = lambda: False,
        take_commands: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._study, self._state, self._log, self._plan = study, study.state, study.journal, study.folder.info.search
        self._proposer, self._scheduler, self._budget, self._actors = proposer, scheduler, budget, actors
        self._is_stopped, self._take_commands = is_stopped, take_commands
        self._pending: list[str] = []
        self.trial_ids: dict[str, str] = {}
        # Of the trials that this driver has run, latest last: why each failed, or empty if it reports. A driver that
        # continues with a study begins with none, so that whatever was fixed in between can show.
        self._outcomes: dict[str, str] = {}
        self.begin_loop()

    # ---- the loop ----------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Run trials until there are no more; results are in the study folder.

        Raises:
            SearchInterruptedError: trials are left.
            StudyError: trials are left since they would fail, or all have failed.
            LoraxsError: an error that is not a trial's.
        """
        actors, folder = self._actors, self._study.folder
        while not self.must_end:
            self.begin_loop()  # trials that are left ask for a slot of the nodes of now
            if self.failing or self.out_of_time or not self.is_short:
                break
            watch = LoopWatch(self._budget, self.abort, actors.slot_counter.have_left)
            with contextlib.closing(Advancers(folder.info, actors, self._log.records)) as advancers:
                slots = SlotManager()
                slots.advancers = advancers
                controller = make_controller(self, _TuneScheduler(self), watch, slots, folder.path / "tune", self._plan)
                try:
                    while not controller.is_finished():
                        self.hear()
                        trials = controller.get_trials()
                        if self.must_end or watch.is_stranded(trials, slots.num_held > 0):
                            break
                        if watch.is_late(trials):
                            running = [trial.trial_id for trial in trials if trial.status == "RUNNING"]
                            if names := [self.trial_ids[own] for own in running if own in self.trial_ids]:
                                _logger.warning(
                                    "Trials %s have not reported since the time budget was used up: they end at their"
                                    " last reports, and their hosts are ended, since they may be stuck.",
                                    ", ".join(names),
                                )
                                actors.pool.end_silent_hosts(folder.name, names)
                            break
                        controller.step()  # asks `suggest` for trials, starts them, and hears of one report or end
                finally:
                    slots.clear()  # type: ignore[no-untyped-call]  # not in Ray
        if self.fatal_error is not None:
            raise self.fatal_error
        self._end_unfinished()

    def _end_unfinished(self) -> None:
        """End what the time budget has cut short, or say why trials are left."""
        log, name, left = self._log, self._study.folder.name, self._log.unfinished()
        is_complete = not left and not self.is_short
        records = log.records.values()
        has_ended = not left and (is_complete or self.out_of_time is not None)
        if has_ended and records and all(record.state is TrialState.FAIL for record in records):
            reason, count = Counter(record.reason for record in records).most_common(1)[0]
            trials = counted(len(records), "trial")
            raise StudyError(
                f"Study {name!r} found nothing: each of its {trials} failed, {count} with: {reason}",
                hint=f"fix that, then `loraxs-search extend {name} --trials N` and `loraxs-search resume"
                f" {name}` train more",
            )
        if self.failing is not None and not is_complete:
            raise StudyError(
                f"Study {name!r} was interrupted: {self.failing}",
                hint=f"fix that, then go on with `loraxs-search resume {name}`",
            )
        if self.out_of_time is not None:
            for record in left:
                self._ended(record.trial_id, TrialState.PRUNED, self.out_of_time, is_cut=True)
        elif not is_complete:
            num_trials = self._study.whole_plan.trials
            raise SearchInterruptedError(
                f"Study {name!r} was interrupted: {len(records) - len(left)} of {counted(num_trials, 'trial')} have"
                " ended. The others keep the state of their last report.",
                hint=f"go on with `loraxs-search resume {name}`",
            )

    # ---- how it stands -----------------------------------------------------------------------------------------------
    @property
    def must_end(self) -> bool:
        """Whether Tune's loop is to end now, whatever its trials do."""
        return self.fatal_error is not None or self._is_stopped()

    @property
    def out_of_time(self) -> str | None:
        """Return a message when the time budget is used up, else None."""
        if not self._budget.is_over:
            return None
        rest = f" but for {self._budget.end_s:.0f} s for refits and last scores" if self._budget.left_s else ""
        return f"the time budget of {self._study.plan.time_budget:g} s is used up{rest}"

    @property
    def notice(self) -> str:
        """Why the search ends before its budget; empty where it uses it up."""
        has_budget = self._study.num_proposed < self._study.plan.trials
        return self.failing or self.out_of_time or (self._state.finishing if has_budget else None) or ""

    @property
    def is_short(self) -> bool:
        """Whether trials are missing of what the search was to train, whatever ended it."""
        if self._pending or self._study.unstarted:
            return True
        return self._state.finishing is None and self._study.num_proposed < self._study.plan.trials

    @property
    def to_cancel(self) -> list[str]:
        """The trials in Tune that are to end at their next step; asked from any thread."""
        late = self._budget.is_late
        return [trial_id for trial_id in list(self.trial_ids.values()) if late or trial_id in self._state.at_once]

    def begin_loop(self) -> None:
        """Propose all unfinished trials in Tune's next loop, those that an earlier time budget has cut among them."""
        self.trial_ids = {}
        if self._log.notice is None and self.out_of_time is None:
            for record in [record for record in self._log.records.values() if record.is_cut]:
                self._log.append(TrialContinued(trial_id=record.trial_id))
        self._pending = [record.trial_id for record in self._log.unfinished()]
        self.apply_commands()

    def apply_commands(self) -> None:
        """Act by the state: end the trials that are stopped and not in Tune.

        A trial in Tune ends at its next report, when it is asked whether it `stops`.
        """
        for trial_id in [each for each in self._pending if each in self._state.stopping]:
            self._pending.remove(trial_id)
            reason = f"{self._state.stopping[trial_id]} at step {self._log.records[trial_id].step}"
            self._ended(trial_id, TrialState.PRUNED, reason)

    def abort(self, error: LoraxsError) -> None:
        """End the search for an error that is not a trial's; the first error counts."""
        self.fatal_error = self.fatal_error or error

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        try:
            yield
        except LoraxsError as error:
            self.abort(error)

    # ---- what Tune asks and says -------------------------------------------------------------------------------------
    def hear(self) -> None:
        """Take commands; Tune has another loop while no trial runs."""
        with self._recording():
            self._take_commands()

    def suggest(self, trial_id: str) -> Any:  # Ray's type forgets `FINISHED`, a text
        """Return the next trial: an unfinished one, one that people asked for, or one that the sampler proposes."""
        self.hear()
        if self.must_end or self.failing or self.out_of_time or not (self.trial_ids or self.is_short):
            return Searcher.FINISHED  # at None, with no trial at work, Tune would ask again for ten minutes
        if not self.is_short or len(self.trial_ids) >= self._actors.slot_counter.max_concurrent:
            return None  # Tune's loop continues while a trial trains
        config: dict[str, Any] | None = None
        records, actors = self._log.records, self._actors
        with self._recording():
            number = len(records)
            name, seed = f"{number:05d}", self._plan.trial_seed(number)
            asked = next(iter(self._study.unstarted), None)
            if self._pending:
                name = self._pending.pop(0)
                started = TrialStarted(trial_id=name, params=dict(records[name].params))
            elif asked is not None:
                params, proposal = self._proposer.add(asked.params, seed)
                asked_by, source = asked.command_id, "".join(asked.trial_ids)
                started = TrialStarted(
                    trial_id=name, params=params, proposal=proposal, command=asked_by, lineage=source
                )
            else:
                params, proposal = self._proposer.propose(seed, index=self._study.num_proposed)
                started = TrialStarted(trial_id=name, params=params, proposal=proposal)
            try:
                spec = actors.spec(name, started.params)
            except UsageError as error:  # params that no trial can have; other trials continue
                self._log.append(started)
                self._ended(name, TrialState.FAIL, error.message)
            else:
                self._log.append(replace(started, hyperparameters=spec.hyperparameters))
                self.trial_ids[trial_id] = name
                config = {SPEC: to_json(spec), RESOURCES: dict(actors.slot_counter.slots.resources)}
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if REPORT in result and self.fatal_error is None:
            with self._recording():
                report = from_json(TrialReport, result[REPORT])
                self._log.append(TrialReported(report=report))
                self._outcomes.setdefault(report.trial_id, "")  # its first report counts

    def stops(self, report: TrialReport) -> bool:
        """Tell the scheduler of a report; return whether the trial is to train no further."""
        try:
            reason = self._scheduler.report(report)
        except Exception as error:  # noqa: BLE001  # a scheduler from elsewhere may raise anything
            self.abort(
                LoraxsError(
                    f"The scheduler {self._scheduler.name!r} failed on a report of trial {report.trial_id}:"
                    f" {type(error).__name__}: {error}.",
                    hint="fix the scheduler, then continue with `loraxs-search resume`",
                )
            )
            return False
        return reason is not None or report.trial_id in self._state.stopping or self._budget.is_over

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        name = self.trial_ids.pop(trial_id, None)
        if name is None or (result is None and not error):
            return  # never ran: it stays unfinished and is proposed again on resume
        with self._recording():
            if result is not None and FATAL in result:
                message, hint = result[FATAL]
                raise LoraxsError(message, hint=hint)
            if self.fatal_error is not None:
                return
            if error or result is None or FAILED in result:
                lost = f"its host was lost more than {counted(self._plan.max_failures, 'time')}"
                reason = lost if error or result is None else result[FAILED]
                self._ended(name, TrialState.FAIL, reason)
                self._outcomes.pop(name, None)
                self._outcomes[name] = reason
                common = common_failure(list(self._outcomes.values()), self._actors.slot_counter.max_concurrent)
                if common is not None and self.failing is None:
                    self.failing = f"{common[0]} of the latest trials failed for the same reason: {common[1]}"
                return
            self.on_trial_result(trial_id, result)  # without a report if a user stopped it at once
            step, state, is_cut = result[STEP], TrialState.PRUNED, False
            if step >= self._plan.max_steps:
                state, reason = TrialState.COMPLETE, f"trained all {step} steps"
            elif name in self._scheduler.stopped:
                reason = self._scheduler.stopped[name]
            elif name in self._state.stopping:
                reason = f"{self._state.stopping[name]} at step {self._log.records[name].step}"
            else:
                reason, is_cut = f"the time budget ended at step {step}", True
            self._ended(name, state, reason, is_cut=is_cut)

    def _ended(self, trial_id: str, state: TrialState, reason: str, *, is_cut: bool = False) -> None:
        self._log.append(TrialEnded(trial_id=trial_id, state=state, reason=reason, is_cut=is_cut))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study folder holds it."""


class _TuneScheduler(_Unpickled, FIFOScheduler):
    """Has Tune start trials in their order, and stop them where the searcher says so."""

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """Return the trial that was proposed first, as Tune's own method does, but without a pass over ended trials."""
        live = tune_controller.get_live_trials()
        waiting = {trial.trial_id: trial for trial in live if trial.status == Trial.PENDING}
        return next((waiting[name] for name in self._searcher.trial_ids if name in waiting), None)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Stop the trial when it is to train no further; a result without a report is a failure, which Tune ends."""
        if REPORT in result and self._searcher.stops(from_json(TrialReport, result[REPORT])):
            return self.STOP
        return self.CONTINUE

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        """Record a last report, about which Tune does not ask; a repeated one changes nothing."""
        self.on_trial_result(tune_controller, trial, result)


class LoopWatch(_Unpickled, Callback):
    """Notices when Tune's loop has to end although trials are left, and counts losses of a trial's host.

    Args:
        unfit: Called with what is wrong when a node cannot run trials, as one that joined late may not.
        ask_anew: Called now and then with what a waiting trial asks for, and whether others have slots; returns whether
            the loop is to end, so that trials ask for what there is now.
    """

    def __init__(
        self, budget: TimeBudget, unfit: Callable[[Any], None], ask_anew: Callable[[Mapping[str, float], bool], bool]
    ) -> None:
        self._budget, self._unfit, self._ask_anew = budget, unfit, ask_anew
        self._lost_at: dict[str, float] = {}
        self._began_at = time.monotonic()
        self._heard_at: dict[str, float] = {}  # when trials that run were last heard of
        self._longest_s: float | None = None  # from one report to the next
        self._late_since: float | None = None
        self._waiting_since: float | None = None
        self._others_have_slots = False

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        self._heard_at[trial.trial_id] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: object
    ) -> None:
        """Note how long a report may take."""
        now = time.monotonic()
        took_s = now - self._heard_at.get(trial.trial_id, self._began_at)
        self._heard_at[trial.trial_id], self._longest_s = now, max(self._longest_s or 0.0, took_s)

    def is_late(self, trials: Sequence[Trial]) -> bool:
        """Whether the time for trials is over, and nobody waits for a report that may still come.

        So it is when no trial runs, as when all wait for nodes that do not come; and when a trial has not reported for
        long, since its host may be stuck. A report may take twice as long as any before it, or where there was none, as
        long as the loop ran; `GRACE_S` at least.
        """
        if not self._budget.is_over:
            self._late_since = None
            return False
        now, is_running = time.monotonic(), any(trial.status == "RUNNING" for trial in trials)
        self._late_since = now if self._late_since is None else self._late_since
        report_s = self._late_since - self._began_at if self._longest_s is None else 2 * self._longest_s
        return not is_running or now - self._late_since > max(GRACE_S, report_s)

    def is_stranded(self, trials: Sequence[Trial], others_have_slots: bool) -> bool:
        """Whether trials wait for slots that none of the nodes of now can have."""
        pending = [trial.config[RESOURCES] for trial in trials if trial.status == "PENDING"]
        others_did, self._others_have_slots = self._others_have_slots, others_have_slots
        if not pending or others_did != others_have_slots:
            self._waiting_since = None
        if not pending:
            return False
        now = time.monotonic()
        self._waiting_since = now if self._waiting_since is None else self._waiting_since
        if now - self._waiting_since < WAIT_S:
            return False
        self._waiting_since = now
        different = [asked for place, asked in enumerate(pending) if asked not in pending[:place]]
        return any(self._ask_anew(asked, others_have_slots) for asked in different)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Count losses of a trial's host that follow one another closely as one; report a node that is unfit.

        Only the end of the trial's file says which node could not make its environment: Tune gives the error to nobody.
        """
        if trial.error_file and Path(trial.error_file).exists():
            _, _, failure = Path(trial.error_file).read_text(encoding="utf-8").rpartition("\nFailure # ")
            if _SETUP_FAILED.search(failure):
                self._unfit(own_error(RuntimeEnvSetupError(failure)))
        now = time.monotonic()
        if now - self._lost_at.get(trial.trial_id, -ONE_LOSS_S) < ONE_LOSS_S:
            trial.max_failures += 1
        else:
            self._lost_at[trial.trial_id] = now
