"""One driver's work on an open study: train, refit and score, write adapters, until nobody asks for more."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from ray import ObjectRef
from ray.exceptions import RayTaskError

from loraxs_search.assets import NOTHING, PROBE
from loraxs_search.errors import (
    ClusterError,
    HomeError,
    LoraxsError,
    counted,
    first_line,
)
from loraxs_search.log.clock import steady_time
from loraxs_search.log.events import (
    BaselineScored,
    BaselinesMeasured,
    CandidateScored,
    DataRead,
    DriverStarted,
    HostsMeasured,
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
from loraxs_search.records.promotion import Baseline, Candidate
from loraxs_search.records.search import SearchRun, StudyDescription
from loraxs_search.records.task import Task
from loraxs_search.records.trial import TrialReport, TrialState
from loraxs_search.registry.finalist import trial_of
from loraxs_search.registry.store import Registry
from loraxs_search.samplers.proposer import Proposer
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.schedulers import make_scheduler
from loraxs_search.search.driver.baselines import BaseModelBaseline, StudyBaselines
from loraxs_search.search.driver.end_time import EndTime
from loraxs_search.search.driver.finalize import Finalization, completed_trials
from loraxs_search.search.driver.result import SearchResult, log_adapters, result_of
from loraxs_search.search.driver.work_items import map_over_hosts
from loraxs_search.search.hosts.answers import HOST_LOST, await_answer
from loraxs_search.search.hosts.pool import HostProxy, Usage
from loraxs_search.search.hosts.study_actors import StudyActors
from loraxs_search.search.tune.loop import StudySearcher
from loraxs_search.search_space.space import Space, notes
from loraxs_search.steering import steered, take_commands
from loraxs_search.steering.state import Deadline, SteeredStudy, planned
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.info import StudyInfo
from loraxs_search.studies.lookup import store_of
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tracking.run_texts import environment_tags

_logger = logging.getLogger(__name__)


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
        if not self._is_settled and "probe" in space.head_inits():
            say("fitting a linear probe for heads to start from")
            self._asked = self._ask(actors.pool.host())

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
                probe = await_answer(self._asked or self._ask(pool.host()), check_stop)
            except HOST_LOST:
                probe = pool.ask(self._ask, check_stop)
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

    def _ask(self, host: HostProxy) -> ObjectRef[LinearProbe]:
        return host.linear_probe.remote(self._task)


class ScoreWatch:
    """Warns once of each thing.

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


_TIMED_STEPS = 4  # of each trial
_LOOK_EVERY_S = 0.2  # for commands
_MOST_FOR_END, _MARGIN = 0.5, 1.1  # of the time budget; of what the end is measured to take


class SearchSession:
    """Searches an open study, whose lock this driver holds; every stage can be repeated.

    Args:
        info: The study's, with the tracking URI that this driver uses.
        started_at: When this driver began its work.
        run_of: Returns the run of a trial in MLflow, if it has one by now.
    """

    def __init__(
        self,
        info: StudyInfo,
        space: Space,
        folder: StudyFolder,
        journal: StudyLog,
        actors: StudyActors,
        is_stopped: Callable[[], bool],
        *,
        started_at: float,
        run_of: Callable[[str], str | None],
    ) -> None:
        self._baselines = StudyBaselines(folder, actors, space.task)  # begun first: Ray Tune takes seconds to start
        actors.linear_probe = StudyProbe(folder, actors, space, journal.phase).digest
        self._info, self._space, self._folder, self._journal = info, space, folder, journal
        self._actors, self._is_stopped, self._run_of = actors, is_stopped, run_of
        self._study = steered(folder, journal)
        reopen(self._study)
        plan, task = info.search, info.task
        self._deadline = Deadline(plan, self._study.state, started_at - journal.spent_s)
        self._watch = ScoreWatch(task, plan.max_steps)
        self._said_baselines = set[str]()
        self._timed: tuple[float, int] | None = None  # when this many steps were done
        self._has_said_what_fits = False
        self._finalization: Finalization | None = None  # once its trials have ended
        trials = StudyTrials(task, plan)
        for event in journal.history():
            trials.apply(event)

        def follow(event: TrialEvent) -> None:
            trials.apply(event)
            if isinstance(event, TrialReported):
                self._watch.reported(event.report)
                self._say_baselines(self._baselines.known())
                self._keep_time_for_end()

        journal.follow = follow
        params = actors.hardware() | {
            "search.metric": task.search_metric,
            "search.direction": task.search_direction,
            "task.kind": task.kind,
            **({} if task.pooling == "class" else {"task.pooling": task.pooling}),
        }
        rows, names = actors.info.num_rows, tuple(space.parameters)
        facts = StudyDescription(space.task, space.base_model.id, names, rows, actors.info.data_fingerprint)
        run = SearchRun(space.text, plan, params, environment_tags(actors.gpus()), facts)
        journal.append(DriverStarted(since=started_at, run=run))
        if not journal.records:
            journal.say(DataRead(metric=task.metric, num_rows=rows, report=actors.info.data))
        folder.snapshots.recover(journal)
        scheduler = make_scheduler(plan, task.search_direction)
        scheduler.spares = self._is_recipe
        scheduler.replay(journal.reports, task.search_metric)
        for trial_id, reason in scheduler.stopped.items():  # of trials that had not ended yet
            journal.append(TrialEnded(trial_id=trial_id, state=TrialState.PRUNED, reason=reason))
        self._shown_plan = planned(plan, self._study.state, self._study.records)
        self._end_time: EndTime | None = None
        self._answer_s = 0.0  # how long an answer at the end takes, where scores are not all there is
        if self._deadline.budget_s is not None and journal.notice is None:
            base = BaseModelBaseline(
                folder, actors, space.task, lambda items: map_over_hosts(actors.pool, items, actors.check_stop)
            )
            self._answer_s = base.seconds_per_row()
        self._keep_time_for_end()
        journal.say(self._facts())
        self._searcher = StudySearcher(
            Proposer(trials, space),
            journal,
            plan,
            actors,
            scheduler,
            self._deadline,
            study=folder.name,
            state=self._study.state,
        )
        self._searcher.is_stopped, self._searcher.take_commands = is_stopped, self._take_commands
        self._next_look = 0.0

    def run(self) -> SearchResult:
        """Search until the budget is used and nobody asks for more; return the result.

        Raises:
            SearchInterruptedError: stopped before the budget was used.
            TrialsFailError: nearly all of the latest trials failed for the same reason, or all have failed.
        """
        with self._actors.watched(self._record_usage, self._show_steps, lambda: self._searcher.to_cancel):
            run_stages(self._folder, self._journal, self._train, self._finalize, self._wants_more)
        self._journal.close()
        self._journal.append(TrainingEnded(notice=self._journal.notice or ""))
        return result_of(self._folder, self._journal)

    def _is_recipe(self, trial_id: str) -> bool:
        """Whether a trial is one of the first, by its method's recipe: it trains to the end.

        Its rate is high for long: it is often behind in the middle and ahead at the end.
        """
        records = self._journal.records
        proposed = (own for own, record in records.items() if not record.command)  # people may have added others before
        is_first = trial_id in islice(proposed, len(self._space.methods))
        return is_first and self._space.follows_recipe(records[trial_id].params)

    # ---- steering ----------------------------------------------------------------------------------------------------
    def _take_commands(self) -> None:
        """Take what people have sent since the last look, if it is time to look again."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_EVERY_S
            self._act_on_commands()

    def _act_on_commands(self) -> None:
        """Have the searcher act by commands; where they change the plan, the view begins anew."""
        if not take_commands(self._study, self._journal.say):
            return
        self._searcher.apply_commands()
        plan = planned(self._info.search, self._study.state, self._study.records)
        if plan != self._shown_plan:
            self._shown_plan = plan
            self._journal.say(self._facts())

    def _wants_more(self) -> bool:
        """Take what people have sent; say whether they ask for more than has been trained."""
        self._act_on_commands()  # what came too late is refused
        has_more = reopen(self._study)
        if has_more:
            self._journal.say(self._facts())
        return has_more

    def _train(self) -> None:
        self._searcher.run(self._folder, self._space.task)
        self._journal.append(TrainingEnded(notice=self._searcher.notice))

    # ---- the end -----------------------------------------------------------------------------------------------------
    def _finalize(self) -> bool:
        """Choose the finalist and have adapters written; False if it is left off, since the search continues.

        Test rows are asked only after people have last been asked whether it does.
        """
        trials = completed_trials(self._journal.records.values(), self._folder.checkpoint_selection)
        finalization = self._finalization = Finalization(
            self._actors,
            self._folder,
            self._space,
            trials,
            self._is_stopped,
            self._journal.counted,
            self._take_commands,
        )
        baselines = self._baselines.result(finalization.on_loop_step)
        self._journal.append(BaselinesMeasured(baselines=baselines))
        self._say_baselines(baselines)
        candidates = self._validated(finalization)
        if self._wants_more():
            return False
        if not finalization.base_baseline.is_measured:
            self._journal.phase("asking the untouched base, on validation and test rows")
            finalization.base_baseline.measure()
        self._journal.phase("scoring the finalist on the test rows, writing adapters")
        candidates = finalization.seal(candidates, self._run_of)
        for candidate in (candidate for candidate in candidates if candidate.test_metrics):
            self._journal.say(CandidateScored(trial=candidate.trial_id, split="test", metrics=candidate.test_metrics))
            try:
                Registry(store_of(self._folder)).record_use(candidate)
            except LoraxsError as error:  # this machine has recorded it, and the next decision from here does
                _logger.info("the registry does not record who has answered the test rows: %s", error.message)
        log_adapters(self._folder, self._journal, trials, candidates)
        baselines = self._folder.baselines() or ()
        self._journal.append(BaselinesMeasured(baselines=baselines))
        self._say_baselines(baselines)
        self._folder.write_candidates(candidates)
        return True

    def _validated(self, finalization: Finalization) -> list[Candidate]:
        """Train the best recipes again, and return all candidates, scored on all validation rows, best first."""
        best, missing = finalization.best, finalization.missing_refits()
        fitting, specs, left_s = None, missing, self._deadline.left_s
        if self._end_time is not None and left_s is not None:
            num_best, num_refits = self._end_time.fitting(left_s, len(best), len(missing))
            fitting, specs = num_best + num_refits, missing[:num_refits]
        if specs:
            trials, fresh = counted(len(best), "trial"), counted(self._info.promotion.seeds, "fresh seed")
            self._journal.phase(f"training the best {trials} again from {fresh}")
            finalization.refit(specs, lambda: self._deadline.left_s == 0.0)
        if left_out := finalization.missing_refits():
            refits = self._info.promotion.seeds * len(best)
            _logger.warning("The time budget has no room for %d of %s.", len(left_out), counted(refits, "refit"))
        self._journal.phase("scoring the candidates on all validation rows")
        candidates = finalization.validate(fitting)
        if (unscored := len(best) - len({trial_of(candidate.trial_id) for candidate in candidates})) > 0:
            _logger.warning("The time budget has no room to score %d of %d candidates.", unscored, len(best))
        for candidate in candidates:
            scores = candidate.validation_metrics
            self._journal.say(CandidateScored(trial=candidate.trial_id, split="validation", metrics=scores))
        for candidate in candidates[:1]:
            self._watch.scored(candidate.trial_id, candidate.validation_metrics)
        return candidates

    # ---- the time budget ---------------------------------------------------------------------------------------------
    def _keep_time_for_end(self) -> None:
        """Keep a part of the time budget for the end, by what trials have taken so far."""
        budget_s = self._deadline.budget_s
        if budget_s is None:  # a report then looks at no other trial
            return
        records = self._journal.records.values()
        last = [record.reports[-1] for record in records if record.reports]
        if not last:
            return
        plan, rule, actors = self._info.search, self._info.promotion, self._actors
        step_s = sum(report.device_s for report in last) / sum(report.step for report in last)
        devices = max(1, actors.slot_counter.slots.num_slots // actors.pack_size.size)
        self._end_time = EndTime.of(
            self._space.task,
            actors.info,
            trial_s=plan.max_steps * step_s,
            scoring_s=sum(report.scoring_s for report in last) / len(last),
            answer_s=self._answer_s,
            num_devices=devices,
        )
        running = sum(record.state is TrialState.RUNNING for record in records)
        self._deadline.report_s = plan.report_every * step_s * running / devices
        end_s = self._end_time.total_s(min(rule.candidates, plan.trials), rule.num_refits(plan.trials))
        self._deadline.end_s = min(_MOST_FOR_END * budget_s, _MARGIN * end_s)

    # ---- what watchers are shown -------------------------------------------------------------------------------------
    def _say_baselines(self, baselines: Iterable[Baseline]) -> None:
        """Say each baseline's scores once."""
        for baseline in baselines:
            if baseline.validation_metrics and baseline.name not in self._said_baselines:
                self._said_baselines.add(baseline.name)
                self._journal.say(BaselineScored(name=baseline.name, metrics=baseline.validation_metrics))

    def _show_steps(self, steps: Mapping[str, int]) -> None:
        """Say how far trials and refits have got since their last reports; called from its own thread."""
        event = TrialsAdvanced(study=self._folder.name, steps=steps)
        with contextlib.suppress(HomeError):
            self._folder.write_steps(event)
        self._journal.show(event)
        for name, step in steps.items():
            if self._finalization is not None:
                self._finalization.reached(name, step)
        if self._finalization is None:
            self._say_what_fits(steps, steady_time())

    def _say_what_fits(self, steps: Mapping[str, int], now: float) -> None:
        """Say once, from a few timed steps, how many trials the time budget has room for where not for all."""
        left_s, done = self._deadline.left_s, sum(steps.values())
        if self._has_said_what_fits or not left_s or not steps:
            return
        if self._timed is None or done < self._timed[1]:  # trials have ended, and others begun
            self._timed = now, done
            return
        since, before = self._timed
        if done - before < _TIMED_STEPS * len(steps):
            return
        self._has_said_what_fits = True
        trial_s = self._info.search.max_steps * (now - since) / (done - before)  # of the device, side by side
        wanted = planned(self._info.search, self._study.state, self._journal.records).trials
        left_s = max(_MOST_FOR_END * left_s, left_s - trial_s * self._info.promotion.num_refits(wanted))
        unended = wanted - sum(record.state is not TrialState.RUNNING for record in self._journal.records.values())
        if (fits := int((left_s * (done - before) / (now - since) + done) // self._info.search.max_steps)) < unended:
            _logger.warning(
                "The time budget has room for about %d of the %s that are left, more where some stop early: one takes"
                " about %.0f s, %d at once take %.0f s.",
                *(fits, counted(unended, "trial"), trial_s, len(steps), trial_s * len(steps)),
            )

    def _record_usage(self, usage: Usage) -> None:
        """Record how busy hosts are; called from its own thread, for MLflow only."""
        with contextlib.suppress(HomeError):
            age = round(steady_time() - self._info.created_at)
            self._journal.append(HostsMeasured(step=age, usage={name: dict(each) for name, each in usage.items()}))

    def _facts(self) -> SearchStarted:
        actors, task = self._actors, self._info.task
        plan = planned(self._info.search, self._study.state, self._journal.records)
        return SearchStarted(
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
            time_left_s=self._deadline.left_s,
            notes=notes(self._space),
            finishing=self._study.state.finishing or "",
        )


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
