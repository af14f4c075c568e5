"""Our searcher: asks the sampler for params, passes Tune's events to the ledger, and notices trials that all fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from ray.tune.search import Searcher

from loraxs_search.errors import LoraxsError, UsageError, counted
from loraxs_search.log.events import TrialContinued, TrialEnded, TrialReported, TrialStarted
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import Lineage, TrialReport, TrialState
from loraxs_search.samplers.proposer import Proposer
from loraxs_search.schedulers._base import Scheduler
from loraxs_search.search.hosts.study_actors import StudyActors
from loraxs_search.search.ledger import Ledger
from loraxs_search.search.tune.advancer import CANCELLED, FAILED, FATAL, REPORT, STEP
from loraxs_search.search.tune.runner import Unpickled
from loraxs_search.search.tune.slots import RESOURCES, SPEC
from loraxs_search.steering.state import AskedTrial, Deadline, SteeringState, extended, num_proposed, unstarted

_FEWEST = 5
_SHARE = 0.9


class Outcomes:
    """Outcomes of the trials that this driver has run, latest last: why a trial failed, or empty if it reports.

    A driver that continues with a study begins with none, so that whatever was fixed in between can show.
    """

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def went_on(self, trial_id: str) -> None:
        """Record that a trial has reported; its first report counts."""
        self._reasons.setdefault(trial_id, "")

    def failed(self, trial_id: str, reason: str) -> None:
        """Record that a trial has failed."""
        self._reasons.pop(trial_id, None)
        self._reasons[trial_id] = reason

    def common_failure(self, num_slots: int) -> tuple[int, str] | None:
        """Return how many of the latest trials failed for one reason, and that, when nearly all of them did.

        The latest are twice as many as run side by side, ten at least; to decide, half of them must be there: trials
        that fail do so sooner than others report.
        """
        enough = max(_FEWEST, num_slots)
        latest = list(self._reasons.values())[-2 * enough :]
        if len(latest) < enough:
            return None
        reason, count = Counter(latest).most_common(1)[0]
        return (count, reason) if reason and count >= _SHARE * len(latest) else None


_ResultT = TypeVar("_ResultT")


class StudySearcher(Unpickled, Searcher):
    """Proposes unfinished trials first, then new ones; records how each ends.

    A trial's id is its Optuna number, so sampler, log, MLflow and Tune speak of the same trial. Proposals depend on
    the plan's seed, the number and the history only: a resumed search proposes what an undisturbed one would.

    Tune takes an exception of its searcher for a failure of the trial. What keeps this one from recording is in
    `fatal_error` instead: from then on it records nothing and proposes nothing, and trials keep their last state.

    What people ask of it is in `state`, which `apply_commands` acts by. Trials that people asked for come before new
    proposals, and on top of them.

    Args:
        deadline: When the time budget is used up.
        study: The study's name, for lineages.
        state: The result of all commands; whoever changes it calls `apply_commands`.
    """

    fatal_error: LoraxsError | None = None
    failing: str | None = None

    def __init__(  # the parts of one search
        self,
        sampler: Proposer,
        ledger: Ledger,
        plan: SearchPlan,
        actors: StudyActors,
        scheduler: Scheduler,
        deadline: Deadline,
        *,
        study: str,
        state: SteeringState,
    ) -> None:
        super().__init__()
        self.is_stopped: Callable[[], bool] = lambda: False  # whether the driver is to end
        self.take_commands: Callable[[], None] = lambda: None  # called at each step of Tune's loop
        self._study, self._state = study, state
        self._sampler, self._scheduler, self._deadline = sampler, scheduler, deadline
        self._ledger, self._plan, self._actors = ledger, plan, actors
        self._pending: list[str] = []
        self._trial_ids: dict[str, str] = {}  # by Tune's id, which is another one after each restart
        self._outcomes = Outcomes()
        self.begin_loop()

    @property
    def must_end(self) -> bool:
        """Whether Tune's loop is to end now, whatever its trials do."""
        return self.fatal_error is not None or self.is_stopped()

    @property
    def early_end(self) -> str | None:
        """Why no more trials are proposed although the budget is not used up; None while there is no such reason."""
        return self.failing or self.out_of_time

    @property
    def out_of_time(self) -> str | None:
        """Return a message when the time budget is used up, else None."""
        if self._deadline.is_over:
            rest = f" but for {self._deadline.end_s:.0f} s for refits and last scores" if self._deadline.left_s else ""
            return f"the time budget of {self._deadline.budget_s:g} s is used up{rest}"
        return None

    @property
    def notice(self) -> str:
        """Why the search ends before its budget; empty where it uses it up."""
        return self.early_end or (self._state.finishing if self._has_budget() else None) or ""

    @property
    def has_more(self) -> bool:
        """Whether there is a trial to propose."""
        return self.early_end is None and self.is_short

    @property
    def is_short(self) -> bool:
        """Whether trials are missing of what the search was to train, whatever ended it."""
        return bool(self._pending or self._wants_more())

    @property
    def to_cancel(self) -> list[str]:
        """The trials in Tune that are to end at their next step; asked from any thread."""
        late = self._deadline.is_late
        return [trial_id for trial_id in list(self._trial_ids.values()) if late or trial_id in self._state.at_once]

    def begin_loop(self) -> None:
        """Propose all unfinished trials in Tune's next loop, those that an earlier time budget has cut among them."""
        self._trial_ids = {}
        if self._ledger.journal.notice is None and self.out_of_time is None:
            for record in [record for record in self._ledger.records.values() if record.is_cut]:
                self._ledger.trial(TrialContinued(trial_id=record.trial_id))
        self._pending = [record.trial_id for record in self._ledger.unfinished()]
        self.apply_commands()

    def on_loop_step(self) -> None:
        """Do what is done at each step of Tune's loop; Tune has another loop while no trial runs."""
        self._recording(self.take_commands)

    def apply_commands(self) -> None:
        """Act by the state: end the trials that are stopped and not in Tune.

        A trial in Tune ends at its next report, when the scheduler asks `is_stopping`.
        """
        for trial_id in [each for each in self._pending if each in self._state.stopping]:
            self._pending.remove(trial_id)
            self._ended(trial_id, TrialState.PRUNED, self._stop_reason(trial_id))

    def is_stopping(self, trial_id: str) -> bool:
        """Say whether a user wants a trial to train no further."""
        return trial_id in self._state.stopping

    def abort(self, error: LoraxsError) -> None:
        """End the search for an error that is not a trial's; the first error counts."""
        self.fatal_error = self.fatal_error or error

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        self.on_loop_step()
        return self._recording(lambda: self._suggest(trial_id))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._recording(lambda: self._reported(result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._recording(lambda: self._completed(trial_id, result, error))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study folder holds it."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a resumed search builds a new searcher from the study folder."""

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _recording(self, act: Callable[[], _ResultT]) -> _ResultT | None:
        try:
            return act()
        except LoraxsError as error:
            self.abort(error)
            return None

    def _suggest(self, tune_id: str) -> Any:  # Ray's type forgets `FINISHED`, a text
        if self.must_end or self._is_over():
            return Searcher.FINISHED  # at None, with no trial at work, Tune would ask again for ten minutes
        if not self._pending and not self._wants_more():
            return None  # Tune's loop continues while a trial trains
        if len(self._trial_ids) >= self._actors.slot_counter.max_concurrent:
            return None
        if self._pending:
            trial_id = self._pending.pop(0)
            started = TrialStarted(trial_id=trial_id, params=dict(self._ledger.records[trial_id].params))
        else:
            started = self._new(f"{self._sampler.next_number:05d}")
        trial_id = started.trial_id
        try:
            spec = self._actors.spec(trial_id, started.params)
        except UsageError as error:  # params that no trial can have; other trials continue
            self._ledger.trial(started)
            self._ended(trial_id, TrialState.FAIL, error.message)
            return None
        self._ledger.trial(replace(started, hyperparameters=spec.hyperparameters))
        self._trial_ids[tune_id] = trial_id
        return {SPEC: to_json(spec), RESOURCES: dict(self._actors.slot_counter.slots.resources)}

    def _reported(self, result: dict[str, Any]) -> None:
        if REPORT in result and self.fatal_error is None:
            report = from_json(TrialReport, result[REPORT])
            self._ledger.trial(TrialReported(report=report))
            self._outcomes.went_on(report.trial_id)

    def _completed(self, tune_id: str, result: dict[str, Any] | None, error: bool) -> None:
        trial_id = self._trial_ids.pop(tune_id, None)
        if trial_id is None or (result is None and not error):
            return  # never ran: it stays unfinished and is proposed again on resume
        if result is not None and FATAL in result:
            message, hint = result[FATAL]
            raise LoraxsError(message, hint=hint)
        if self.fatal_error is not None:
            return
        if error or result is None:
            self._fail(trial_id, f"its host was lost more than {counted(self._plan.max_failures, 'time')}")
        elif FAILED in result:
            self._fail(trial_id, result[FAILED])
        elif CANCELLED in result:
            self._end(trial_id, result[STEP])
        else:
            self._reported(result)
            self._end(trial_id, result[STEP])

    def _has_budget(self) -> bool:
        return self._num_proposed() < extended(self._plan, self._state).trials

    def _num_proposed(self) -> int:
        return num_proposed(self._ledger.records, self._state)

    def _asked(self) -> AskedTrial | None:
        """Return the next trial that a user asked for and that has not started."""
        return next(iter(unstarted(self._ledger.records, self._state)), None)

    def _wants_more(self) -> bool:
        return self._asked() is not None or (self._state.finishing is None and self._has_budget())

    def _is_over(self) -> bool:
        nothing_left = not (self._pending or self._trial_ids or self._wants_more())
        return nothing_left or self.early_end is not None

    def _new(self, trial_id: str) -> TrialStarted:
        """Return the next trial: its params, how the sampler came to them, and where it comes from."""
        seed, asked = self._plan.trial_seed(self._sampler.next_number), self._asked()
        if asked is None:
            params, proposal = self._sampler.propose(seed, index=self._num_proposed())
            return TrialStarted(trial_id=trial_id, params=params, proposal=proposal)
        params, proposal = self._sampler.add(asked.params, seed)
        lineage = Lineage(self._study, asked.source) if asked.source else None
        return TrialStarted(
            trial_id=trial_id, params=params, proposal=proposal, command=asked.command_id, lineage=lineage
        )

    def _end(self, trial_id: str, step: int) -> None:
        if step >= self._plan.max_steps:
            self._ended(trial_id, TrialState.COMPLETE, f"trained all {step} steps{self._retrained(trial_id)}")
            return
        if (reason := self._scheduler.stopped.get(trial_id)) is None and trial_id in self._state.stopping:
            reason = self._stop_reason(trial_id)
        is_cut = reason is None
        reason = reason or f"the time budget ended at step {step}"
        self._ended(trial_id, TrialState.PRUNED, reason, is_cut=is_cut)

    def _ended(self, trial_id: str, state: TrialState, reason: str, *, is_cut: bool = False) -> None:
        self._ledger.trial(TrialEnded(trial_id=trial_id, state=state, reason=reason, is_cut=is_cut))

    def _stop_reason(self, trial_id: str) -> str:
        return f"{self._state.stopping[trial_id]} at step {self._ledger.last_step(trial_id)}"

    def _retrained(self, trial_id: str) -> str:
        reports = self._ledger.records[trial_id].reports
        steps = reports[-1].retrained_steps if reports else 0
        return f", {steps} of them again from the start: its state was on a node that is lost" if steps else ""

    def _fail(self, trial_id: str, reason: str) -> None:
        self._ended(trial_id, TrialState.FAIL, reason)
        self._outcomes.failed(trial_id, reason)
        common = self._outcomes.common_failure(self._actors.slot_counter.max_concurrent)
        if common is not None and self.failing is None:
            self.failing = f"{common[0]} of the latest trials failed for the same reason: {common[1]}"
