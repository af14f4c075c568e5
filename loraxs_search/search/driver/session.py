"""One driver's work on a study: open it, train, refit and score, write adapters, until nobody asks for more."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from ray import ObjectRef
from ray.exceptions import RayTaskError

from loraxs_search.assets import NOTHING, PROBE, START
from loraxs_search.errors import (
    BaseModelError,
    ClusterError,
    HomeError,
    LoraxsError,
    SearchInterruptedError,
    UsageError,
    first_line,
    one_of,
)
from loraxs_search.log.events import (
    BaselinesMeasured,
    DataRead,
    DriverStarted,
    Reopened,
    RowsScored,
    SearchFinished,
    SearchStarted,
    TrainingEnded,
    TrialEnded,
    TrialEvent,
    TrialReported,
    TrialsAdvanced,
)
from loraxs_search.log.study_log import StudyLog
from loraxs_search.manifest import verify
from loraxs_search.methods import method_of
from loraxs_search.records.adapter import HostInfo, LinearProbe
from loraxs_search.records.search import Baseline
from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.pull import pull
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search.cluster.connection import own_error
from loraxs_search.search.driver.finalize import Finalization
from loraxs_search.search.driver.result import SearchResult, lacks_baseline, open_tracker, record_end
from loraxs_search.search.driver.work_items import BaseModelBaseline, StudyBaselines, map_over_hosts
from loraxs_search.search.hosts.answers import HOST_LOST, on_host
from loraxs_search.search.hosts.pool import HostPool, StudyActors
from loraxs_search.search.tune.loop import StudySearcher
from loraxs_search.search.tune.proposer import Proposer
from loraxs_search.search.tune.time_budget import TimeBudget
from loraxs_search.search_space.space import Space, notes, trial_shapes
from loraxs_search.steering import SteeredStudy, steered, take_commands
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.mirror import mirrored
from loraxs_search.studies.record_files import StudyInfo
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.versions import with_python

_logger = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.2  # for commands


# ---- opening ---------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def open_study(
    info: StudyInfo, space: Space, pool: HostPool, log: StudyLog, stop: threading.Event, *, is_locked: bool
) -> Iterator[SearchSession]:
    """Open a study on the hosts of `pool`, and record how its search ends; a new one is created.

    Whatever a killed driver has done is found in the folder.

    Args:
        log: The study's; there may be no file of it yet.
        stop: Set from anywhere, it ends the search cleanly, and those that run beside it.
        is_locked: Whether this process holds the study already.
    """
    lost_lease = threading.Event()  # which stops no search beside this one

    def begun() -> StudyFolder | None:
        """Return the study's folder, where this driver or an earlier one began it."""
        if StudyFolder.exists(info.name) and (found := StudyFolder.open(info.name)).info.study_id == info.study_id:
            return found
        return None

    def is_stopped() -> bool:
        return stop.is_set() or lost_lease.is_set()

    def check_stop() -> None:
        if is_stopped():
            raise SearchInterruptedError.of([] if begun() is None else [info.name])

    with contextlib.ExitStack() as closing:
        closing.enter_context(log.saying_warnings())
        folder = begun()
        actors = StudyActors(info, space, pool, check_stop, folder.identity.read() if folder else None)
        closing.callback(actors.close)
        info, space = settled(info, space, actors.info)
        actors.prepare_factors(log.phase)
        if (folder := begun()) is None:  # `create` refuses a name that was taken in the meantime
            folder = StudyFolder.create(info, space.text, resolved=space)
        if not is_locked:
            closing.enter_context(folder.lock())
        mirror = closing.enter_context(mirrored(folder, lost_lease.set))
        if folder.identity.read() is None:
            folder.identity.write(actors.info.identity)
        if lacks_baseline(folder):
            folder.set_candidates_aside()
        actors.start_from = _kept_start(folder)
        log.refresh()
        tracker = open_tracker(folder, info.tracking_uri, mirror)
        try:
            yield SearchSession(steered(folder, log), space, actors, is_stopped)
        except BaseException as error:
            if mirror is not None and mirror.lost_to is not None:
                raise mirror.lost_to from error
            stopped = isinstance(error, (SearchInterruptedError, KeyboardInterrupt))
            with contextlib.suppress(HomeError):  # of a disk that may be full, which the search has ended for
                notice = {"notice": str(own_error(error))}
                log.append(SearchFinished(state="KILLED" if stopped else "FAILED", summary=notice))
            raise
        finally:
            log.close()  # the log may be another driver's soon, and MLflow gets nothing from here on
            log.phase("writing the last records to MLflow")
            if mirror is not None and mirror.lost_to is not None:
                tracker.abandon()
            else:
                tracker.close()


def settled(study: StudyInfo, space: Space, info: HostInfo) -> tuple[StudyInfo, Space]:
    """Return study and space as they are on this base: `pooling: auto` is resolved, and trials may start as they ask.

    A head that reads another pool is no start for trials.

    Raises:
        BaseModelError: the start is of another base.
        UsageError: some trial of the space could not begin at it: rank, modules or factors do not fit.
    """
    task = replace(space.task, pooling=info.pooling) if space.task.pooling == "auto" else space.task
    space, start = replace(space, task=task), study.start_from
    if start is None:
        return replace(study, task=task), space
    if start.base_digest != info.base.weight_digest:
        raise BaseModelError(
            f"`start_from` must name an adapter on this base, with weights {info.base.weight_digest[:16]}..., but"
            f" {start.name} is on weights {start.base_digest[:16]}....",
            hint="name an adapter of the same base at the same revision",
        )
    start = replace(start, with_head=start.with_head and start.pooling == task.pooling)
    method, by_name = method_of(start.hyperparameters), {module.name: module for module in info.modules}
    heads = [str(head) for head in space.possible_values(method.name, "head") or ()]
    if start.with_head and set(heads) != {start.hyperparameters.head}:
        raise UsageError(
            f"`head` must be the adapter's own ({start.hyperparameters.head}) where trials start from its head, but a "
            f"trial may have {one_of(heads)}.",
            hint=f"write `head: {start.hyperparameters.head}` in `parameters`",
        )
    for params, names in trial_shapes(space, method, info.modules):
        method.check_start(start.hyperparameters, params, [by_name[name] for name in names])
    return replace(study, task=task, start_from=start), space


def _kept_start(folder: StudyFolder) -> str | None:
    """Have the study keep the asset that its trials start from, and return its digest; None if they start anew.

    Raises:
        RegistryError, TrackingError: it cannot be had, and the study does not have it yet.
    """
    start = folder.info.start_from
    if start is None or START in folder.assets():
        return folder.assets().get(START)
    path = pull(start.name, uri=folder.info.tracking_uri)
    manifest = verify(path)
    if path.name != start.digest:
        raise UsageError(
            f"{start.name} must be what study {folder.name!r} began with, but its content is another by now.",
            hint="launch the study again under another name",
        )
    method = method_of(manifest.hyperparameters)
    return folder.write_asset(START, method.start_asset(path, manifest, with_head=start.with_head))


def begin_linear_probe(
    folder: StudyFolder, actors: StudyActors, space: Space, say: Callable[[str], None]
) -> Callable[[], str | None]:
    """Begin to fit a study's linear probe, unless its folder has one, while trials start.

    Args:
        say: Takes what begins.
    Returns:
        What waits for it, and returns the asset's digest once the study has it; None if heads start at random, now and
        after a resume. It raises ClusterError or HomeError where the host's node is not fit or its disk cannot be
        written, and SearchInterruptedError where the search is stopped meanwhile: a resumed one fits it anew.
    """
    known = folder.assets().get(PROBE)
    if known is not None or kind_of(space.task).model.num_outputs is None:
        return lambda: None if known == NOTHING else known

    task = space.task
    ask = on_host(lambda host: host.linear_probe(task), task)
    begun: ObjectRef[LinearProbe] | None = None
    if any("probe" in (space.possible_values(name, "head_init") or ()) for name in space.methods):
        say("fitting a linear probe for heads to start from")
        begun = ask(actors.pool.host())

    @functools.cache
    def digest() -> str | None:
        try:
            probe = actors.pool.ask(ask, actors.check_stop, begun)
        except (ClusterError, HomeError):
            raise
        except (*HOST_LOST, RayTaskError) as error:  # no search ends for it
            probe = LinearProbe(reason=first_line(getattr(error, "cause", error)))
        if not probe.content:
            folder.write_asset(PROBE, b"")
            _logger.warning("heads start at random, without a linear probe: %s", probe.reason)
            return None
        _logger.info("heads start from a linear probe of %d train rows (%.1f s)", probe.num_rows, probe.seconds)
        return folder.write_asset(PROBE, probe.content)

    return digest


# ---- searching -------------------------------------------------------------------------------------------------------
@dataclass
class SearchSession:
    """Searches a study whose lock this driver holds, and whose log is followed into its copy and MLflow.

    Every stage can be repeated.

    Args:
        study: Its folder, its log, and what people have made of it.
        is_stopped: Whether this search is to end, by itself or with all that run beside it.
    """

    study: SteeredStudy
    space: Space
    actors: StudyActors
    is_stopped: Callable[[], bool]

    def begin(self, started_at: float) -> None:
        """Bring the study to where its log stands, and begin what takes long beside the first trials.

        Args:
            started_at: When this driver began its work.
        """
        space, folder, log, actors = self.space, self.study.folder, self.study.journal, self.actors
        plan, task = folder.info.search, space.task
        self._baselines = StudyBaselines(folder, actors, task)  # begun first: Ray Tune takes seconds to start
        actors.linear_probe = begin_linear_probe(folder, actors, space, log.phase)
        reopen(self.study)
        self._budget, trials = TimeBudget(self.study, actors, started_at - log.spent_s), StudyTrials(task, plan)
        self._said_baselines = set[str]()
        self._finalization: Finalization | None = None  # once its trials have ended
        for event in log.history():
            trials.apply(event)

        def follow(event: TrialEvent) -> None:
            trials.apply(event)
            if isinstance(event, TrialReported):
                self._say_baselines(self._baselines.take())
                self._budget.keep_time_for_end()

        log.follow = follow
        hardware, gpus = actors.hardware()
        params = hardware | {
            "search.metric": task.search_metric,
            "search.direction": task.search_direction,
            "search.parameters": ", ".join(space.parameters),
            "base_model": space.base_model.id,
            "data_fingerprint": actors.info.data_fingerprint,
            "task.kind": task.kind,
            **({} if task.pooling == "class" else {"task.pooling": task.pooling}),
        }
        versions = {f"version.{name}": version for name, version in with_python().items()}
        tags = versions | {"hardware.gpus": ", ".join(gpus)}
        log.append(DriverStarted(since=started_at, space_yaml=space.text, plan=plan, params=params, tags=tags))
        if not log.records:
            log.say(DataRead(metric=task.metric, num_rows=actors.info.num_rows, report=actors.info.data))
        folder.snapshots.recover(log)

        scheduler = SCHEDULERS.get(plan.scheduler)(plan, task.search_metric, task.search_direction)
        scheduler.spares = lambda trial_id: is_recipe(trial_id, space, log.records)
        for report in log.reports:
            scheduler.report(report)
        for trial_id, reason in scheduler.stopped.items():  # of trials that had not ended yet
            log.append(TrialEnded(trial_id=trial_id, state=TrialState.PRUNED, reason=reason))
        if self.study.plan.time_budget is not None and log.notice is None:
            spread = functools.partial(map_over_hosts, actors.pool, on_loop_step=actors.check_stop)
            baseline = BaseModelBaseline(folder, actors, task, spread)
            self._budget.answer_s, self._budget.num_answered = baseline.answered()
        self._budget.keep_time_for_end()
        self._say_plan()
        self._next_look = 0.0
        self._searcher = StudySearcher(
            Proposer(trials, space), self.study, actors, scheduler, self._budget, self.is_stopped, self._hear
        )

    def run(self) -> SearchResult:
        """Search until the budget is used and nobody asks for more; return the result.

        Raises:
            SearchInterruptedError: stopped before the budget was used.
            StudyError: nearly all of the latest trials failed for the same reason, or all have failed.
        """
        folder, log = self.study.folder, self.study.journal
        with self.actors.pool.watched(folder.name, self._show_steps, lambda: self._searcher.to_cancel):
            while True:
                if log.notice is None and folder.candidates() is None:
                    self._searcher.run()
                    log.append(TrainingEnded(notice=self._searcher.notice))
                # People may ask for more at any time: then candidates are set aside, and more trials are trained.
                if self._wants_more() or (folder.candidates() is None and not self._finalize()):
                    continue
                if not self._wants_more():
                    break
        log.close()
        return record_end(folder, log)

    def _finalize(self) -> bool:
        """Choose the finalist and have adapters written; False if it is left off, since the search continues.

        Test rows are asked only after people have last been asked whether it does.
        """
        folder, log = self.study.folder, self.study.journal
        end = Finalization(self.study, self.space, self.actors, self._on_end_step)
        self._finalization = end
        baselines = self._baselines.result(self._on_end_step)
        log.append(BaselinesMeasured(baselines=baselines))
        self._say_baselines(baselines)
        candidates = end.validate(self._budget)
        if self._wants_more():
            return False
        if candidates and not end.base_baseline.is_measured:
            log.phase("asking the untouched base, on validation and test rows")
            end.base_baseline.measure()
            self._budget.answer_s, self._budget.num_answered = end.base_baseline.answered()
        log.phase("scoring the finalist on the test rows, writing adapters")
        candidates = end.seal(candidates)
        for candidate in (candidate for candidate in candidates if candidate.test_metrics):
            log.say(RowsScored(what="candidate", name=candidate.trial_id, split="test", metrics=candidate.test_metrics))
            try:
                Promoter(folder.store_uri(), candidate.task).record_use(candidate)
            except LoraxsError as error:  # this machine has recorded it, and the next decision from here does
                _logger.info("the registry does not record who has answered the test rows: %s", error.message)
        self._say_baselines(folder.baselines() or ())
        folder.write_candidates(candidates)
        return True

    def _on_end_step(self) -> None:
        """Hear people while hosts work at the end of the search.

        Raises:
            SearchInterruptedError: stopped from outside.
        """
        self._hear()
        if self.is_stopped():
            name = self.study.folder.name
            raise SearchInterruptedError(
                f"Study {name!r} was interrupted after its trials, before its candidates were scored.",
                hint=f"go on with `loraxs-search resume {name}`",
            )

    # ---- steering ----------------------------------------------------------------------------------------------------
    def _hear(self, *, now: bool = False) -> None:
        """Act by what people have sent, if it is time to look again; where that changes the plan, the view begins anew.

        Args:
            now: Whether to look whatever the time.
        """
        if not now and time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_EVERY_S
        if take_commands(self.study, self.study.journal.say):
            self._searcher.apply_commands()
            if self.study.whole_plan != self._shown_plan:
                self._say_plan()

    def _wants_more(self) -> bool:
        """Take what people have sent; say whether they ask for more than has been trained."""
        self._hear(now=True)  # what came too late is refused
        has_more = reopen(self.study)
        if has_more:
            self._say_plan()
        return has_more

    # ---- what watchers are shown -------------------------------------------------------------------------------------
    def _say_baselines(self, baselines: Iterable[Baseline]) -> None:
        """Say each baseline's scores once."""
        for baseline in baselines:
            if baseline.validation_metrics and baseline.name not in self._said_baselines:
                self._said_baselines.add(baseline.name)
                scores = baseline.validation_metrics
                self.study.journal.say(
                    RowsScored(what="baseline", name=baseline.name, split="validation", metrics=scores)
                )

    def _show_steps(self, steps: Mapping[str, int]) -> None:
        """Say how far trials and refits have got since their last reports; called from its own thread."""
        event = TrialsAdvanced(study=self.study.folder.name, steps=steps)
        with contextlib.suppress(HomeError):
            self.study.folder.steps.write(event)
        self.study.journal.show(event)
        if self._finalization is not None:
            self._finalization.reached(steps)

    def _say_plan(self) -> None:
        """Say what the search is about to do; the view begins anew."""
        actors, info, task = self.actors, self.study.folder.info, self.space.task
        plan = self._shown_plan = self.study.whole_plan
        self.study.journal.say(
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
                why_slots=actors.pack_size.reason,
                time_left_s=self._budget.left_s,
                notes=notes(self.space),
                finishing=self.study.state.finishing or "",
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
    has_more = study.is_to_reopen
    if has_more:
        study.journal.append(Reopened(number=study.state.num_reopenings))
    if study.journal.is_reopened:
        study.folder.set_candidates_aside()
    return has_more
