"""What is known of a search from its events: the facts that views draw, launch's own and those in other terminals."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from loraxs_search.log import events
from loraxs_search.records.literals import Scalar, sign_of
from loraxs_search.records.trial import Hyperparameters, TrialState


def expected_steps(
    trials: Sequence[tuple[int, TrialState]], num_trials: int, max_steps: int, report_every: int
) -> float:
    """Return how many steps all trials of a search will have trained in the end.

    A trial is expected to continue from a report as often as those before it did; where none has got so far, always. So
    it is the most that there can be, until the first trials are stopped early.

    Args:
        trials: How far each has come, and its state.
        num_trials: Those that are still to come included.
    """
    rungs, share = [*range(report_every, max_steps, report_every), max_steps], dict[int, float]()
    for rung in rungs[:-1]:  # the share that was not stopped, of those that got there and whose fate is known
        passed = sum(rung < steps for steps, _ in trials)  # failed trials say nothing of it
        stopped = sum(steps == rung and state is TrialState.PRUNED for steps, state in trials)
        share[rung] = passed / (passed + stopped) if passed + stopped else 1.0

    def to_come(steps: int) -> float:
        """Return the steps that a trial is expected to train beyond these, where it has not been stopped."""
        expected, chance, last = 0.0, 1.0, steps
        for rung in rungs:
            if rung > steps:
                expected += chance * (rung - last)
                last, chance = rung, chance * share.get(rung, 1.0)
        return expected

    running = sum(to_come(steps) for steps, state in trials if state is TrialState.RUNNING)
    return sum(steps for steps, _ in trials) + running + max(0, num_trials - len(trials)) * to_come(0)


class Pace:
    """Counts what is done over time, and says how much that is a second.

    Args:
        at: When it began, seconds since 1970.
        window_s: Older counts are forgotten; None keeps all.
    """

    def __init__(self, at: float, window_s: float | None = None) -> None:
        self._since, self._window_s = at, window_s
        self._counts: list[tuple[float, int]] = []
        self.last_at = at

    def add(self, at: float, amount: int) -> None:
        """Something was done."""
        self.last_at = max(self.last_at, at)
        self._counts.append((at, amount))
        if self._window_s is not None:
            self._counts = [count for count in self._counts if count[0] > self.last_at - self._window_s]

    def per_s(self, now: float | None = None) -> float | None:
        """Return how much was done a second up to `now`, by default up to the last count; None before the first."""
        end = self.last_at if now is None else max(now, self.last_at)
        start = self._since if self._window_s is None else max(self._since, end - self._window_s)
        amount = sum(amount for at, amount in self._counts if at > start)
        return amount / (end - start) if self._counts and end > start else None


_T = TypeVar("_T")

_RECENT_S = 60.0  # what hosts have done for so long says how fast they are now
_ORDER = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass
class TrialLine:
    """A trial as it stands.

    Args:
        metric: What trials are compared by; empty while that is not known.
        reports: Metrics of each of its reports.
        host: Address of the node that it trains on; empty while that is not known.
        current_step: The step that it has got to since its last report, as far as is known.
    """

    trial: str
    params: Mapping[str, Scalar]
    metric: str
    state: TrialState = TrialState.RUNNING
    step: int = 0
    reports: list[Mapping[str, float]] = field(default_factory=list)
    stored_bytes: int = 0
    host: str = ""
    current_step: int = 0

    @property
    def scores(self) -> list[float]:
        """What it is compared by, in each of its reports."""
        return [metrics[self.metric] for metrics in self.reports if self.metric in metrics]

    @property
    def score(self) -> float | None:
        """Its last one; None before the first report."""
        return self.reports[-1].get(self.metric) if self.reports else None


@dataclass(frozen=True)
class HostLine:
    """A node that trains: trials on it, how many it takes (None if that is not known), steps and rows a second."""

    address: str
    num_trials: int
    num_slots: int | None
    steps_per_s: float | None
    rows_per_s: float | None = None


@dataclass(frozen=True)
class Score:
    """The best of several by what trials are compared by."""

    name: str
    value: float


class SearchState:
    """Takes the events of one study, in their order, and says how its search stands."""

    def __init__(self) -> None:
        self.study = ""
        self.facts: events.SearchStarted | None = None
        self.phase: events.Phase | None = None
        self.trials: dict[str, TrialLine] = {}
        self.baselines: dict[str, Mapping[str, float]] = {}
        self.steered = ""  # the last that people asked of the search, and its answer
        self.finishing = ""  # why the search ends without new trials
        self.ended: events.SearchEnded | None = None
        self._pace = self._work = Pace(0.0)
        self._hosts: dict[str, tuple[Pace, Pace]] = {}  # steps and rows
        self._refit_steps, self._refit_total = 0, 0
        self._derived: dict[str, Any] = {}  # what was computed since the last event: views ask often

    def happened(self, event: events.ShownEvent) -> None:
        """Take the next event."""
        self._derived.clear()
        self.study = event.study or self.study
        match event:  # views show the others once, as they come
            case events.Phase():
                if self.phase is None or self.phase.text != event.text or self.phase.unit != event.unit:
                    self._work = Pace(event.at)
                elif event.done is not None:
                    self._work.add(event.at, event.done - (self.phase.done or 0))
                self.phase = event
                if event.unit == "steps":
                    self._refit_steps, self._refit_total = event.done or 0, event.total or 0
            case events.SearchStarted():
                self.facts, self.phase, self.ended = event, None, None
                self._pace, self._hosts, self.finishing = Pace(event.at), {}, event.finishing
                for trial in self.trials.values():
                    trial.metric, trial.current_step = event.metric, 0
            case events.TrialStarted():
                metric = self.facts.metric if self.facts else ""
                self.trials[event.trial_id] = TrialLine(event.trial_id, event.params, metric)
            case events.TrialReported():
                self._reported(event)
            case events.TrialEnded() | events.TrialContinued():
                trial = self.trials[event.trial_id]
                trial.state = event.state if isinstance(event, events.TrialEnded) else TrialState.RUNNING
                trial.current_step = 0
            case events.TrialsAdvanced():
                for name, step in event.steps.items():
                    if name in self.trials and self.trials[name].state is TrialState.RUNNING:
                        self.trials[name].current_step = step
            case events.Steered():
                self.steered, self.finishing = event.text, event.finishing
            case events.BaselineScored():
                self.baselines[event.name] = event.metrics
            case events.SearchEnded():
                self.ended = event

    # ---- how it stands -----------------------------------------------------------------------------------------------
    @property
    def is_training(self) -> bool:
        """Whether trials train now, as far as is known."""
        return self.facts is not None and self.phase is None and self.ended is None

    @property
    def counts(self) -> Counter[TrialState]:
        """How many trials are in which state."""
        return self._once("counts", lambda: Counter(trial.state for trial in self.trials.values()))

    @property
    def num_trials(self) -> int:
        """Trials that the search will end with; people may add some to those that it began with."""
        return max(len(self.trials), self.facts.num_trials if self.facts else 0)

    @property
    def num_ended(self) -> int:
        return len(self.trials) - self.counts[TrialState.RUNNING]

    @property
    def best(self) -> Score | None:
        """The trial with the best score of its last report so far."""
        scored = ((trial.trial, trial.score) for trial in self.trials.values())
        return self._once("best", lambda: self._best({name: score for name, score in scored if score is not None}))

    @property
    def lead(self) -> float | None:
        """How much better the best trial is than the best baseline, negative where it is worse; None without both."""
        best, mark = self.best, self.best_baseline
        return None if best is None or mark is None else self._sign() * (mark.value - best.value)

    @property
    def best_baseline(self) -> Score | None:
        """The best baseline that is scored by what trials are compared by; None if there is none."""
        if self.facts is None:
            return None
        metric = self.facts.metric
        return self._best({name: scores[metric] for name, scores in self.baselines.items() if metric in scores})

    def lines(self, limit: int | None = None) -> list[TrialLine]:
        """Return the first trials of a table: running ones, the furthest on top, then the others, best first."""
        return heapq.nsmallest(len(self.trials) if limit is None else limit, self.trials.values(), key=self._place)

    def score_range(self) -> tuple[float, float]:
        """Return the lowest and the highest score of all reports."""

        def extremes() -> tuple[float, float]:
            scores = [score for trial in self.trials.values() for score in trial.scores if math.isfinite(score)]
            return min(scores, default=0.0), max(scores, default=0.0)

        return self._once("range", extremes)

    def hosts(self, now: float) -> list[HostLine]:
        """Return the nodes that train, or could, by address."""
        slots = self.facts.slots if self.facts else {}
        only = next(iter(slots)) if len(slots) == 1 else ""  # where trials are that have not reported yet
        running = (each for each in self.trials.values() if each.state is TrialState.RUNNING)
        busy = Counter(filter(None, (each.host or only for each in running)))
        paces = {name: [pace.per_s(now) for pace in both] for name, both in self._hosts.items()}
        names = sorted({*slots, *paces})
        return [HostLine(name, busy[name], slots.get(name), *paces.get(name, (None, None))) for name in names]

    # ---- how much there is to do -------------------------------------------------------------------------------------
    @property
    def steps_done(self) -> int:
        """Steps trained so far, those of refits included."""
        since_reports = sum(max(0, line.current_step - line.step) for line in self.trials.values())
        return sum(trial.step for trial in self.trials.values()) + since_reports + self._refit_steps

    def trial_steps(self) -> float:
        """Return how many steps trials are expected to have trained in the end."""
        if (facts := self.facts) is None:
            return 0.0
        trials = self.trials.values()
        if self.phase is not None and self.num_ended == len(self.trials) and self.trials:  # there come no more
            return float(sum(trial.step for trial in trials))
        trained = [(trial.step, trial.state) for trial in trials]
        plan = (self.num_trials, facts.max_steps, facts.report_every)
        return self._once("trial_steps", lambda: expected_steps(trained, *plan))

    @property
    def refit_steps(self) -> int:
        """Steps of the refits that follow the trials, at most."""
        return self._refit_total or (self.facts.num_refits * self.facts.max_steps if self.facts else 0)

    def share_done(self) -> float:
        """Return how much of all steps is trained, from 0 to 1; 1 when the search has finished."""
        if self.ended is not None and self.ended.state == "finished":
            return 1.0
        total = self.trial_steps() + self.refit_steps
        return min(1.0, self.steps_done / total) if total else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Return how long the steps that are left take at the pace so far, refits included; None while that is unknown.

        What follows them, scores and files, is counted once it has begun.
        """
        if self.ended is not None or self.facts is None:
            return None
        if (phase := self.phase) is not None:
            measured = self._work if self._work.per_s() or phase.unit != "steps" else self._pace
            return self._left(measured, (phase.total or 0) - (phase.done or 0), now)
        steps = self.trial_steps() - sum(trial.step for trial in self.trials.values())
        left = self._left(self._pace, steps + self.refit_steps, now)
        budget_s = self.facts.time_left_s
        if left is None or budget_s is None:
            return left
        return min(left, max(0.0, self.facts.at + budget_s - now))

    # ---- inside ------------------------------------------------------------------------------------------------------
    @staticmethod
    def _left(pace: Pace, amount: float, now: float) -> float | None:
        """Return how long an amount takes; where it should be done by now, at the pace that this leaves."""
        if not (per_s := pace.per_s()):
            return None
        left = amount / per_s - (now - pace.last_at)
        return left if left > 0 else amount / (pace.per_s(now) or per_s)

    def _once(self, name: str, compute: Callable[[], _T]) -> _T:
        """Return what has that name, computed at most once between two events."""
        value = self._derived.get(name)
        if value is None:
            value = self._derived[name] = compute()
        return value

    def _sign(self) -> float:
        return -sign_of(self.facts.direction) if self.facts is not None else 1.0

    def _best(self, scores: Mapping[str, float]) -> Score | None:
        finite = {name: value for name, value in scores.items() if math.isfinite(value)}
        if not finite:
            return None
        name = min(finite, key=lambda name: (self._sign() * finite[name], name))
        return Score(name, finite[name])

    def _place(self, trial: TrialLine) -> tuple[int, float, float, str]:
        score = math.inf if trial.score is None else self._sign() * trial.score
        is_running = trial.state is TrialState.RUNNING
        return _ORDER.index(trial.state), -trial.step if is_running else 0.0, score, trial.trial

    def _reported(self, event: events.TrialReported) -> None:
        report, trial = event.report, self.trials[event.trial_id]
        steps, trial.step, trial.host = report.step - trial.step, report.step, report.host.partition(" ")[0]
        trial.stored_bytes = report.size.stored_bytes
        trial.reports.append(report.metrics)
        if self.facts is not None and event.at >= self.facts.at:
            self._pace.add(event.at, steps)
            if trial.host:
                begun = Pace(self.facts.at, _RECENT_S), Pace(self.facts.at, _RECENT_S)
                steps_pace, rows_pace = self._hosts.setdefault(trial.host, begun)
                steps_pace.add(event.at, steps)
                rows = int(trial.params.get("batch_size", Hyperparameters.batch_size))
                rows_pace.add(event.at, steps * rows)
