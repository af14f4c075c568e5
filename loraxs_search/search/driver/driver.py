"""The driver: one search from an empty cluster to scored candidates."""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from loraxs_search.errors import HomeError, counted
from loraxs_search.log.events import SearchStarted
from loraxs_search.records import SearchRun, TrialState
from loraxs_search.schedulers import Scheduler, make_scheduler
from loraxs_search.search.driver.commander import Commander, commands
from loraxs_search.search.driver.finished import lacks_baseline, log_adapters, result_of, summary_of
from loraxs_search.search.driver.interrupted import OwnStop, SearchInterruptedError, TrialsFailError
from loraxs_search.search.driver.kept_report import keep_report
from loraxs_search.search.driver.result import SearchResult
from loraxs_search.search.driver.run_facts import study_facts, task_params
from loraxs_search.search.driver.start_from import check_start, keep_start
from loraxs_search.search.ledger import Ledger, ScoreWatch, SearchView
from loraxs_search.search_space import Space, notes
from loraxs_search.steering import SteeredStudy, SteeringState, steered
from loraxs_search.steering.state import planned
from loraxs_search.studies import Journal, StudyFolder, StudyInfo, mirrored
from loraxs_search.studies.clock import steady_time
from loraxs_search.tracking._run_texts import environment_tags
from loraxs_search.tracking.tracker import Tracker

if TYPE_CHECKING:
    from loraxs_search.search.driver.candidates import Finish
    from loraxs_search.search.hosts.pool import HostPool, Usage
    from loraxs_search.search.hosts.study_actors import StudyActors
    from loraxs_search.search.tune.deadline import Deadline
    from loraxs_search.search.tune.searcher import StudySearcher


_LOOK_EVERY_S = 0.5  # while all that is left is paused
_LATE = (
    "hosts.study_actors",
    "tune.searcher",
    "tune.scheduler",
    "tune.runner",
)


class Driver:
    """Runs one study on Ray. Every stage can be repeated: the study folder has what a killed driver did.

    Args:
        stop: Set from anywhere, it ends the search cleanly, and those that run beside it.
    """

    def __init__(self, info: StudyInfo, space: Space, view: SearchView, stop: threading.Event) -> None:
        self._info, self._space, self._stop = info, space, OwnStop(stop)
        self._ledger = Ledger(info.name, view)
        self._started_at = steady_time()
        self._finish: Finish | None = None  # once its trials have ended

    def run(self, pool: HostPool) -> SearchResult:
        """Search on the hosts of `pool`, score the best trials, and return the result.

        Raises:
            SearchInterruptedError: stopped before the budget was used.
            TrialsFailError: nearly all of the latest trials failed for the same reason.
        """
        self._ledger.phase("loading the base model and the data")
        for name in _LATE:  # while the host loads
            importlib.import_module(f"loraxs_search.search.{name}")
        from loraxs_search.search.hosts.study_actors import StudyActors

        with self._ledger.hearing_warnings():
            folder = self._begun_folder()
            actors = StudyActors(self._info, self._space, pool, recorded=folder.identity() if folder else None)
            try:
                check_start(self._space, self._info, actors.info)
                actors.prepare_factors(self._ledger.phase)
                return self._run_with(actors, self._open_folder())
            finally:
                actors.close()

    def _run_with(self, actors: StudyActors, folder: StudyFolder) -> SearchResult:
        with folder.lock(), mirrored(folder, self._stop.set) as mirror:
            if (recorded := folder.identity()) is None or recorded.setup is None:
                folder.write_identity(actors.info.identity)
            if lacks_baseline(folder):
                folder.set_candidates_aside()
            actors.start_from = keep_start(folder)
            journal, uri = folder.journal(), self._info.tracking_uri
            tracker = Tracker(folder.name, folder.path, uri, self._info.task.registered_name, folder.keep_rule)
            try:
                result = self._search(folder, actors, journal, tracker.run_id)
                journal.front_found(result.front)
                keep_report(folder, journal, tracker)
                journal.search_finished("FINISHED", summary_of(result))
                return result
            except BaseException as error:
                if mirror is not None and mirror.lost_to is not None:
                    raise mirror.lost_to from error
                stopped = isinstance(error, (SearchInterruptedError, KeyboardInterrupt))
                with contextlib.suppress(HomeError):  # of a disk that may be full, which the search has ended for
                    journal.search_finished("KILLED" if stopped else "FAILED", {"notice": str(error)})
                raise
            finally:
                self._ledger.close()  # the log may be another driver's soon, and MLflow gets nothing from here on
                self._ledger.phase("writing the last records to MLflow")
                tracker.close()

    def _search(
        self, folder: StudyFolder, actors: StudyActors, journal: Journal, run_of: Callable[[str], str | None]
    ) -> SearchResult:
        """Search, and return the result.

        Args:
            run_of: Returns the run of a trial in MLflow, if it has one by now.
        """
        from loraxs_search.samplers.proposer import Proposer
        from loraxs_search.samplers.trials import StudyTrials
        from loraxs_search.search.driver.baselines import StudyBaselines
        from loraxs_search.search.tune.deadline import Deadline
        from loraxs_search.search.tune.runner import run_tuner
        from loraxs_search.search.tune.scheduler import TuneScheduler
        from loraxs_search.search.tune.searcher import StudySearcher

        baselines = StudyBaselines(folder, actors, self._space.task)  # begun first: Ray Tune takes seconds to start
        plan, task = self._info.search, self._info.task
        study, was_begun = steered(folder, journal), journal.num_drivers > 0
        self._reopen(study)
        deadline = Deadline(plan, study.state, self._started_at - journal.spent_s)
        trials = StudyTrials(task, plan, lambda: self._space)
        watch = ScoreWatch(task, plan.max_steps)
        ledger = self._ledger
        ledger.open(
            *(journal, trials, watch),
            after_report=lambda: ledger.baselines_scored(baselines.known()),
        )
        self._begin_journal(journal, actors)
        ledger.recover(folder)
        scheduler = self._scheduler(ledger, journal)
        self._ledger.search_started(self._facts(actors, ledger, study.state, deadline))
        searcher = StudySearcher(
            Proposer(trials, self._space),
            ledger,
            self._space,
            plan,
            actors,
            scheduler,
            deadline,
            folder=folder,
            state=study.state,
        )
        follow = self._follower(searcher, study, lambda: self._facts(actors, ledger, study.state, deadline))

        def train() -> None:
            tune_scheduler = TuneScheduler(scheduler, task.search_metric, searcher.break_off, searcher.leaves)
            run_tuner(searcher, tune_scheduler, plan, folder.path / "tune", deadline, self._stop)

        def train_all() -> None:
            self._train(train, searcher, commander, actors.pool)
            self._end_unfinished(ledger, searcher, planned(plan, study.state, journal.records).trials)
            journal.search_ended(searcher.notice)

        def keep_adapters() -> bool:
            journal.baselines_measured(baselines.result())
            self._ledger.baselines_scored(baselines.known())
            return self._keep_adapters(folder, actors, ledger, run_of, watch, commander.turn, goes_on)

        def goes_on() -> bool:
            """Take what people have sent; say whether they ask for more than has been trained."""
            commander.take_all()  # what came too late is refused
            return self._reopen(study, lambda: self._facts(actors, ledger, study.state, deadline))

        with actors.watched(
            functools.partial(self._measured, journal),
            functools.partial(self._advanced, folder),
        ):
            while True:
                with commands(study, self._info.tracking_uri, ledger.steered, follow, goes_on=was_begun) as commander:
                    _go_through(folder, journal, train_all, keep_adapters, goes_on)
                if not self._reopen(study):  # by what was answered last
                    break
                was_begun = False  # from here on somebody may write words to this driver
        ledger.close()
        journal.search_ended(journal.notice or "")
        return result_of(folder, journal)

    def _advanced(self, folder: StudyFolder, steps: Mapping[str, int]) -> None:
        """Say how far trials and refits have got since their last reports; called from a thread of its own."""
        self._ledger.advanced(folder, steps)
        for name, step in steps.items():
            if self._finish is not None:
                self._finish.reached(name, step)

    def _measured(self, journal: Journal, usage: Usage) -> None:
        """Record how busy hosts are; called from a thread of its own, for MLflow alone."""
        with contextlib.suppress(HomeError):
            journal.hosts_measured(usage, since=self._info.created_at)

    def _begin_journal(self, journal: Journal, actors: StudyActors) -> None:
        """Have the journal take what happens, of a new study first what its rows are like."""
        task, info = self._info.task, actors.info
        params, tags = actors.hardware() | task_params(task), environment_tags(actors.gpus())
        run = SearchRun(self._space.text, self._info.search, params, tags, study_facts(self._space, info))
        journal.driver_started(self._started_at, run)
        if not journal.records:
            self._ledger.data_read(task, info)

    # ---- stages ------------------------------------------------------------------------------------------------------
    def _follower(
        self, searcher: StudySearcher, study: SteeredStudy, facts: Callable[[], SearchStarted]
    ) -> Callable[[], None]:
        """Return what has the searcher follow commands; where they change the plan, the view begins anew."""
        shown = planned(self._info.search, study.state, study.records)

        def follow() -> None:
            nonlocal shown
            searcher.follow()
            if shown != (shown := planned(self._info.search, study.state, study.records)):
                self._ledger.search_started(facts())

        return follow

    def _scheduler(self, ledger: Ledger, journal: Journal) -> Scheduler:
        """Return the scheduler as it stood when the journal ended; trials that it had stopped end now."""
        scheduler = make_scheduler(self._info.search, self._info.task.search_direction)
        scheduler.replay(journal.reports, self._info.task.search_metric)
        for trial_id, reason in scheduler.stopped.items():
            ledger.trial_ended(trial_id, TrialState.PRUNED, reason)
        return scheduler

    def _begun_folder(self) -> StudyFolder | None:
        """Return the study's folder, where an earlier driver began it."""
        if StudyFolder.exists(self._info.name):
            folder = StudyFolder.open(self._info.name)
            if folder.info.study_id == self._info.study_id:
                return folder
        return None

    def _open_folder(self) -> StudyFolder:
        # `create` refuses a name that was taken in the meantime.
        return self._begun_folder() or StudyFolder.create(self._info, self._space.text, resolved=self._space)

    def _reopen(self, study: SteeredStudy, facts: Callable[[], SearchStarted] | None = None) -> bool:
        """Go on with a study whose trials had ended, where people have asked for more; return whether they have.

        The journal says so first: candidates that are still there are of before.

        Args:
            facts: What the view begins anew with, once it has begun.
        """
        has_more = study.state.num_reopenings > study.journal.num_reopenings
        if has_more:
            study.journal.reopened(study.state.num_reopenings)
        if study.journal.is_reopened:
            study.folder.set_candidates_aside()
        if has_more and facts is not None:
            self._ledger.search_started(facts())
        return has_more

    def _train(self, run: Callable[[], None], searcher: StudySearcher, commander: Commander, pool: HostPool) -> None:
        """Run trials until there are no more; where all that are left are paused, wait for somebody to continue them.

        Tune does not wait: without trials to run it would hold processes and warn of missing resources.
        """
        from loraxs_search.search.hosts.pool import GivingUp

        with contextlib.closing(GivingUp(pool, self._info.name)) as giving_up:

            def turn() -> None:
                commander.turn()
                giving_up.turn(searcher.to_give_up)

            searcher.on_turn = turn
            self._run_and_wait(run, searcher)

    def _run_and_wait(self, run: Callable[[], None], searcher: StudySearcher) -> None:
        while searcher.has_more and searcher.fatal_error is None and not self._stop.is_set():
            if not searcher.is_waiting:
                run()
                continue
            self._ledger.steered(f"everything left is paused: go on with `loraxs-search continue {self._info.name}`")
            while searcher.is_waiting and not self._stop.wait(_LOOK_EVERY_S):
                searcher.turn()
        if searcher.fatal_error is not None:
            raise searcher.fatal_error

    def _end_unfinished(self, ledger: Ledger, searcher: StudySearcher, num_trials: int) -> None:
        left, name = ledger.unfinished(), self._info.name
        is_complete = not left and not searcher.is_short
        if searcher.failing is not None and not is_complete:
            raise TrialsFailError(
                f"Study {name!r} was interrupted: {searcher.failing}",
                hint=f"fix that, then go on with `loraxs-search resume {name}`",
            )
        if searcher.out_of_time is not None:
            for record in left:
                ledger.trial_ended(record.trial_id, TrialState.PRUNED, searcher.out_of_time)
        elif not is_complete:
            ended = len(ledger.records) - len(left)
            raise SearchInterruptedError(
                f"Study {name!r} was interrupted: {ended} of {counted(num_trials, 'trial')} have ended. "
                "The others keep the state of their last report.",
                hint=f"go on with `loraxs-search resume {name}`",
            )

    def _keep_adapters(
        self,
        folder: StudyFolder,
        actors: StudyActors,
        ledger: Ledger,
        run_of: Callable[[str], str | None],
        watch: ScoreWatch,
        on_turn: Callable[[], None],
        goes_on: Callable[[], bool],
    ) -> bool:
        """Choose the finalist and have adapters written; False where it is left off, since the search goes on.

        Test rows are asked only after people have last been asked whether it does.
        """
        from loraxs_search.search.driver.candidates import Finish, completed_trials

        trials = completed_trials(ledger.records.values(), folder.keep_rule)
        finish = Finish(actors, folder, self._space, trials, self._stop, self._ledger.counted, on_turn)
        self._finish = finish
        seeds = self._info.promotion.seeds
        if seeds and finish.best:
            self._ledger.phase(
                f"training the best {counted(len(finish.best), 'trial')} again from {counted(seeds, 'fresh seed')}"
            )
            finish.refit()
        self._ledger.phase("scoring the candidates on all validation rows")
        candidates = finish.validate()
        for candidate in candidates:
            self._ledger.candidate_scored(candidate.trial_id, "validation", candidate.validation_metrics)
        for candidate in candidates[:1]:
            watch.scored(candidate.trial_id, candidate.validation_metrics)
        if goes_on():
            return False
        if not finish.alone.is_measured:
            self._ledger.phase("asking the base alone, on validation and test rows")
            finish.alone.measure()
        self._ledger.phase("scoring the finalist on the test rows, writing adapters")
        candidates = finish.seal(candidates, run_of)
        for candidate in (candidate for candidate in candidates if candidate.test_metrics):
            self._ledger.candidate_scored(candidate.trial_id, "test", candidate.test_metrics)
        log_adapters(folder, ledger.journal, trials, candidates)
        ledger.journal.baselines_measured(folder.baselines() or ())
        self._ledger.baselines_scored(folder.baselines() or ())
        folder.write_candidates(candidates)
        return True

    def _facts(self, actors: StudyActors, ledger: Ledger, state: SteeringState, deadline: Deadline) -> SearchStarted:
        plan = planned(self._info.search, state, ledger.records)
        task = self._info.task
        return SearchStarted(
            study=self._info.name,
            at=steady_time(),
            task=task.registered_name,
            metric=task.search_metric,
            direction=task.search_direction,
            num_trials=plan.trials,
            max_steps=plan.max_steps,
            report_every=plan.report_every,
            num_refits=self._info.promotion.num_refits(plan.trials),
            device=actors.info.device,
            dtype=actors.info.dtype,
            num_slots=actors.slot_counter.max_concurrent,
            slots=actors.slots_by_address(),
            why_slots=actors.pack_size.reason,
            time_left_s=deadline.left_s,
            notes=notes(self._space),
            steering=state.status,
        )


def _go_through(
    folder: StudyFolder,
    journal: Journal,
    train: Callable[[], None],
    keep_adapters: Callable[[], bool],
    goes_on: Callable[[], bool],
) -> None:
    """Train, then keep adapters; from the start again whenever people ask for more in the meantime.

    Args:
        keep_adapters: Returns whether it came to its end.
        goes_on: Whether people have asked for more: then the candidates are set aside.
    """
    while True:
        if journal.notice is None and folder.candidates() is None:
            train()
        if goes_on() or (folder.candidates() is None and not keep_adapters()):
            continue
        if not goes_on():
            return
