"""One driver's work on an open study: train, refit and score, write adapters, until nobody asks for more."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from ray import ObjectRef
from ray.exceptions import RayTaskError

from loraxs_search.assets import NOTHING, PROBE
from loraxs_search.errors import ClusterError, HomeError, LoraxsError, first_line
from loraxs_search.log.clock import steady_time
from loraxs_search.log.events import (
    BaselineScored,
    BaselinesMeasured,
    CandidateScored,
    DataRead,
    DriverStarted,
    Reopened,
    SearchStarted,
    TrainingEnded,
    TrialEnded,
    TrialEvent,
    TrialReported,
    TrialsAdvanced,
)
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.host import LinearProbe
from loraxs_search.records.promotion import Baseline
from loraxs_search.records.search import SearchRun, StudyDescription
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialRecord, TrialReport, TrialState
from loraxs_search.registry.store import Registry
from loraxs_search.samplers.proposer import Proposer
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.schedulers import make_scheduler
from loraxs_search.search.cluster.connection import living_nodes
from loraxs_search.search.driver.finalize import Finalization
from loraxs_search.search.driver.open_study import OpenStudy
from loraxs_search.search.driver.result import SearchResult, record_end
from loraxs_search.search.driver.time_budget import TimeBudget
from loraxs_search.search.driver.work_items import BaseModelBaseline, StudyBaselines, map_over_hosts
from loraxs_search.search.hosts.answers import HOST_LOST, await_answer
from loraxs_search.search.hosts.study_actors import StudyActors
from loraxs_search.search.tune.loop import StudySearcher
from loraxs_search.search_space.space import Space, notes
from loraxs_search.steering import take_commands
from loraxs_search.steering.state import SteeredStudy, planned
from loraxs_search.studies.folder import StudyFolder, store_of
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tracking.run_texts import environment_tags

_logger = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.2  # for commands


class StudyProbe:
    """Begins to fit a study's linear probe, unless its folder has one, while trials start.

    Args:
        say: Takes what begins.
    """

    def __init__(self, folder: StudyFolder, actors: StudyActors, space: Space, say: Callable[[str], None]) -> None:
        self._folder, self._actors, self._task = folder, actors, space.task
        known = folder.assets().get(PROBE)
        self._digest = None if known == NOTHING else known
        self._asked: ObjectRef[LinearProbe] | None = None
        has_none = kind_of(space.task).model.num_outputs is None
        self._is_settled = known is not None or has_none
        starts = [space.possible_values(name, "head_init") or () for name in space.methods]
        if not self._is_settled and any("probe" in own for own in starts):
            say("fitting a linear probe for heads to start from")
            self._asked = actors.pool.host().linear_probe.remote(space.task)

    def digest(self) -> str | None:
        """Return the asset's digest once the study has it; None if heads start at random, now and after a resume.

        Raises:
            ClusterError, HomeError: the host's node is not fit, or its disk cannot be written.
            SearchInterruptedError: stopped from outside; a resumed search fits it anew.
        """
        if self._is_settled:
            return self._digest
        pool, check_stop, self._is_settled = self._actors.pool, self._actors.check_stop, True
        try:
            try:
                probe = await_answer(self._asked or pool.host().linear_probe.remote(self._task), check_stop)
            except HOST_LOST:
                probe = pool.ask(lambda host: host.linear_probe.remote(self._task), check_stop)
        except (ClusterError, HomeError):
            raise
        except (*HOST_LOST, RayTaskError) as error:  # no search ends for it
            probe = LinearProbe(reason=first_line(getattr(error, "cause", error)))
        if probe.content:
            self._digest = self._folder.write_asset(PROBE, probe.content)
            _logger.info("heads start from a linear probe of %d train rows (%.1f s)", probe.num_rows, probe.seconds)
        else:
            self._folder.write_asset(PROBE, b"")
            _logger.warning("heads start at random, without a linear probe: %s", probe.reason)
        return self._digest


class ScoreWatch:
    """Warns of what scores show to be wrong with how a task is asked, once of each thing.

    Args:
        max_steps: Of each trial. One that has trained less than half of them proves nothing.
    """

    def __init__(self, task: Task, max_steps: int) -> None:
        self._kind, self._max_steps = kind_of(task), max_steps
        self._said: set[str] = set()

    def reported(self, report: TrialReport) -> None:
        """Look at the scores of a trial's report."""
        if 2 * report.step >= self._max_steps:
            self.scored(report.trial_id, report.metrics)

    def scored(self, trial_id: str, metrics: Mapping[str, float]) -> None:
        """Look at an adapter's scores."""
        for name, sentence in self._kind.score_warnings(metrics):
            if name not in self._said:
                self._said.add(name)
                _logger.warning("trial %s: %s", trial_id, sentence)


class SearchSession:
    """Searches an open study, whose lock this driver holds; every stage can be repeated.

    Args:
        started_at: When this driver began its work.
    """

    def __init__(self, opened: OpenStudy, started_at: float) -> None:
        self._opened, self._study, self._actors, self._log = opened, opened.study, opened.actors, opened.study.journal
        space, folder, log, actors = opened.space, opened.study.folder, opened.study.journal, opened.actors
        plan, task = folder.info.search, space.task
        self._baselines = StudyBaselines(folder, actors, task)  # begun first: Ray Tune takes seconds to start
        actors.linear_probe = StudyProbe(folder, actors, space, log.phase).digest
        reopen(self._study)
        self._budget = TimeBudget(self._study, actors, started_at - log.spent_s)
        self._watch, trials = ScoreWatch(task, plan.max_steps), StudyTrials(task, plan)
        self._said_baselines = set[str]()
        self._finalization: Finalization | None = None  # once its trials have ended
        for event in log.history():
            trials.apply(event)

        def follow(event: TrialEvent) -> None:
            trials.apply(event)
            if isinstance(event, TrialReported):
                self._watch.reported(event.report)
                self._say_baselines(self._baselines.take())
                self._budget.keep_time_for_end()

        log.follow = follow
        hardware, gpus = actors.hardware()
        params = hardware | {
            "search.metric": task.search_metric,
            "search.direction": task.search_direction,
            "task.kind": task.kind,
            **({} if task.pooling == "class" else {"task.pooling": task.pooling}),
        }
        rows, names = actors.info.num_rows, tuple(space.parameters)
        facts = StudyDescription(task, space.base_model.id, names, rows, actors.info.data_fingerprint)
        run = SearchRun(space.text, plan, params, environment_tags(gpus), facts)
        log.append(DriverStarted(since=started_at, run=run))
        if not log.records:
            log.say(DataRead(metric=task.metric, num_rows=rows, report=actors.info.data))
        folder.snapshots.recover(log)

        scheduler = make_scheduler(plan, task.search_direction)
        scheduler.spares = lambda trial_id: is_recipe(trial_id, space, log.records)
        scheduler.replay(log.reports, task.search_metric)
        for trial_id, reason in scheduler.stopped.items():  # of trials that had not ended yet
            log.append(TrialEnded(trial_id=trial_id, state=TrialState.PRUNED, reason=reason))
        if self._budget.deadline.budget_s is not None and log.notice is None:
            spread = functools.partial(map_over_hosts, actors.pool, on_loop_step=actors.check_stop)
            self._budget.answer_s = BaseModelBaseline(folder, actors, task, spread).seconds_per_row()
        self._budget.keep_time_for_end()
        self._say_plan()
        self._next_look = 0.0
        proposer = Proposer(trials, space)
        self._searcher = StudySearcher(
            proposer, self._study, actors, scheduler, self._budget.deadline, opened.is_stopped, self._hear
        )

    def run(self) -> SearchResult:
        """Search until the budget is used and nobody asks for more; return the result.

        Raises:
            SearchInterruptedError: stopped before the budget was used.
            TrialsFailError: nearly all of the latest trials failed for the same reason, or all have failed.
        """
        folder, log = self._study.folder, self._log

        def train() -> None:
            self._searcher.run()
            log.append(TrainingEnded(notice=self._searcher.notice))

        with self._actors.pool.watched(self._study.name, self._show_steps, lambda: self._searcher.to_cancel):
            run_stages(folder, log, train, self._finalize, self._wants_more)
        self._log.close()
        return record_end(folder, log)

    # ---- the end -----------------------------------------------------------------------------------------------------
    def _finalize(self) -> bool:
        """Choose the finalist and have adapters written; False if it is left off, since the search continues.

        Test rows are asked only after people have last been asked whether it does.
        """
        folder, log = self._study.folder, self._log
        end = self._finalization = Finalization(self._opened, self._hear)
        baselines = self._baselines.result(end.on_loop_step)
        log.append(BaselinesMeasured(baselines=baselines))
        self._say_baselines(baselines)
        candidates = end.validate(self._budget)
        for candidate in candidates[:1]:
            self._watch.scored(candidate.trial_id, candidate.validation_metrics)
        if self._wants_more():
            return False
        if not end.base_baseline.is_measured:
            log.phase("asking the untouched base, on validation and test rows")
            end.base_baseline.measure()
        log.phase("scoring the finalist on the test rows, writing adapters")
        candidates = end.seal(candidates)
        for candidate in (candidate for candidate in candidates if candidate.test_metrics):
            log.say(CandidateScored(trial=candidate.trial_id, split="test", metrics=candidate.test_metrics))
            try:
                Registry(store_of(folder)).record_use(candidate)
            except LoraxsError as error:  # this machine has recorded it, and the next decision from here does
                _logger.info("the registry does not record who has answered the test rows: %s", error.message)
        self._say_baselines(folder.baselines() or ())
        folder.write_candidates(candidates)
        return True

    # ---- steering ----------------------------------------------------------------------------------------------------
    def _hear(self, *, now: bool = False) -> None:
        """Act by what people have sent, if it is time to look again; where that changes the plan, the view begins anew.

        Args:
            now: Whether to look whatever the time.
        """
        if not now and time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_EVERY_S
        if take_commands(self._study, self._log.say):
            self._searcher.apply_commands()
            if planned(self._study.folder.info.search, self._study.state, self._study.records) != self._shown_plan:
                self._say_plan()

    def _wants_more(self) -> bool:
        """Take what people have sent; say whether they ask for more than has been trained."""
        self._hear(now=True)  # what came too late is refused
        has_more = reopen(self._study)
        if has_more:
            self._say_plan()
        return has_more

    # ---- what watchers are shown -------------------------------------------------------------------------------------
    def _say_baselines(self, baselines: Iterable[Baseline]) -> None:
        """Say each baseline's scores once."""
        for baseline in baselines:
            if baseline.validation_metrics and baseline.name not in self._said_baselines:
                self._said_baselines.add(baseline.name)
                self._log.say(BaselineScored(name=baseline.name, metrics=baseline.validation_metrics))

    def _show_steps(self, steps: Mapping[str, int]) -> None:
        """Say how far trials and refits have got since their last reports; called from its own thread."""
        event = TrialsAdvanced(study=self._study.name, steps=steps)
        with contextlib.suppress(HomeError):
            self._study.folder.steps.write(event)
        self._log.show(event)
        if self._finalization is not None:
            self._finalization.reached(steps)
        else:
            self._budget.say_what_fits(steps, steady_time())

    def _say_plan(self) -> None:
        """Say what the search is about to do; the view begins anew."""
        actors, info, task = self._actors, self._study.folder.info, self._opened.space.task
        addresses, by_node = {node.node_id: node.address for node in living_nodes()}, actors.slot_counter.slots.by_node
        plan = self._shown_plan = planned(info.search, self._study.state, self._study.records)
        self._log.say(
            SearchStarted(
                task=task.registered_name,
                metric=task.search_metric,
                direction=task.search_direction,
                num_trials=plan.trials,
                max_steps=plan.max_steps,
                report_every=plan.report_every,
                num_refits=info.promotion.num_refits(plan.trials),
                device=actors.info.device,
                dtype=actors.info.dtype,
                num_slots=actors.slot_counter.max_concurrent,
                slots={addresses[own]: slots for own, slots in by_node.items() if own in addresses},
                why_slots=actors.pack_size.reason,
                time_left_s=self._budget.deadline.left_s,
                notes=notes(self._opened.space),
                finishing=self._study.state.finishing or "",
            )
        )


def is_recipe(trial_id: str, space: Space, records: Mapping[str, TrialRecord]) -> bool:
    """Whether a trial is one of the first, by its method's recipe: it trains to the end.

    Its rate is high for long: it is often behind in the middle and ahead at the end.
    """
    proposed = (own for own, record in records.items() if not record.command)  # people may have added others before
    return trial_id in islice(proposed, len(space.methods)) and space.follows_recipe(records[trial_id].params)


def reopen(study: SteeredStudy) -> bool:
    """Go on with a study whose trials had ended, where people have asked for more; return whether they have.

    The journal says so first: candidates that are still there are of before.
    """
    has_more = study.state.num_reopenings > study.journal.num_reopenings
    if has_more:
        study.journal.append(Reopened(number=study.state.num_reopenings))
    if study.journal.is_reopened:
        study.folder.set_candidates_aside()
    return has_more


def run_stages(
    folder: StudyFolder,
    journal: StudyLog,
    train: Callable[[], None],
    finalize: Callable[[], bool],
    wants_more: Callable[[], bool],
) -> None:
    """Train, then finalize; from the start again whenever people ask for more in the meantime.

    Args:
        finalize: Returns whether it came to its end.
        wants_more: Whether people have asked for more: then the candidates are set aside.
    """
    while True:
        if journal.notice is None and folder.candidates() is None:
            train()
        if wants_more() or (folder.candidates() is None and not finalize()):
            continue
        if not wants_more():
            return
