"""What is known of a search from its events: the facts that views draw, launch's own and those in other terminals."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from loraxs_search.log import events
from loraxs_search.log.study_log import apply_to_trials
from loraxs_search.records.codec import sign_of
from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.reports.leaderboard import LeaderboardRow, row_of


class _Pace:
    """Counts what is done over time, and says how much that is a second.

    Args:
        at: When it began, seconds since 1970.
    """

    def __init__(self, at: float) -> None:
        self._since = self.last_at = at
        self._done: int | None = None

    def add(self, at: float, amount: int) -> None:
        """Something was done."""
        self.last_at, self._done = max(self.last_at, at), (self._done or 0) + amount

    def per_s(self, now: float | None = None) -> float | None:
        """Return how much was done a second up to `now`, by default up to the last count; None before the first."""
        end = self.last_at if now is None else max(now, self.last_at)
        return self._done / (end - self._since) if self._done is not None and end > self._since else None


_ORDER = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_OF_EVENTS = ("counts", "best", "trial_steps")  # computed at most once between two events


class SearchState:
    """Takes the events of one study, in their order, and says how its search stands.

    Attributes:
        trials: What is known of each, by id.
        steps: The step that running trials have got to since their last reports, as far as is known.
        baselines: Scores on validation rows.
        steered: What people asked of the search last, and its answer.
        finishing: Why the search ends without new trials.
        sign: Turns a score so that more is better.
    """

    def __init__(self) -> None:
        self.study = ""
        self.facts: events.SearchStarted | None = None
        self.phase: events.Phase | None = None
        self.trials: dict[str, TrialRecord] = {}
        self.steps: dict[str, int] = {}
        self.baselines: dict[str, Mapping[str, float]] = {}
        self.steered = self.finishing = ""
        self.ended: events.SearchEnded | None = None
        self.sign = 1.0
        self._pace = self._work = _Pace(0.0)
        self._refit_steps, self._refit_total = 0, 0

    def happened(self, event: events.ShownEvent) -> None:
        """Take the next event."""
        for name in _OF_EVENTS:
            self.__dict__.pop(name, None)
        self.study = event.study or self.study
        is_new = self.facts is not None and event.at >= self.facts.at  # not an earlier driver's
        if isinstance(event, events.TrialReported) and is_new:
            self._pace.add(event.at, event.report.step - self.trials[event.trial_id].step)
        if isinstance(event, events.TrialEvent):
            apply_to_trials(self.trials, event)
        match event:  # views show the others once, as they come
            case events.Phase():
                if self.phase is None or self.phase.text != event.text or self.phase.unit != event.unit:
                    self._work = _Pace(event.at)
                elif event.done is not None:
                    self._work.add(event.at, event.done - (self.phase.done or 0))
                self.phase = event
                if event.unit == "steps":
                    self._refit_steps, self._refit_total = event.done or 0, event.total or 0
            case events.SearchStarted():
                self.facts, self.phase, self.ended = event, None, None
                self.sign, self.finishing = sign_of(event.direction), event.finishing
                self._pace, self.steps = _Pace(event.at), {}
            case events.TrialEnded() | events.TrialContinued():
                self.steps.pop(event.trial_id, None)
            case events.TrialsAdvanced():
                running = (name for name, it in self.trials.items() if it.state is TrialState.RUNNING)
                self.steps |= {name: event.steps[name] for name in running if name in event.steps}
            case events.Steered():
                self.steered, self.finishing = event.text, event.finishing
            case events.RowsScored(what="baseline"):
                self.baselines[event.name] = event.metrics
            case events.SearchEnded():
                self.ended = event

    # ---- how it stands -----------------------------------------------------------------------------------------------
    @property
    def is_training(self) -> bool:
        """Whether trials train now, as far as is known."""
        return self.facts is not None and self.phase is None and self.ended is None

    @cached_property
    def counts(self) -> Counter[TrialState]:
        """How many trials are in which state."""
        return Counter(trial.state for trial in self.trials.values())

    @property
    def num_trials(self) -> int:
        """Trials that the search will end with; people may add some to those that it began with."""
        return max(len(self.trials), self.facts.num_trials if self.facts else 0)

    @property
    def num_ended(self) -> int:
        return len(self.trials) - self.counts[TrialState.RUNNING]

    @cached_property
    def best(self) -> tuple[str, float] | None:
        """The trial with the best score of its last report so far, and that score."""
        return self._best({name: trial.reports[-1].metrics for name, trial in self.trials.items() if trial.reports})

    @property
    def best_baseline(self) -> tuple[str, float] | None:
        """The best baseline that is scored by what trials are compared by, and its score; None if there is none."""
        return self._best(self.baselines)

    def rows(self, limit: int | None = None) -> list[LeaderboardRow]:
        """Return the first trials of a table: running ones, the furthest on top, then the others, best first."""

        def place(trial: TrialRecord) -> tuple[int, float, float, str]:
            score, is_running = row_of(trial, metric).score, trial.state is TrialState.RUNNING
            loss = math.inf if score is None else -self.sign * score
            return _ORDER.index(trial.state), -trial.step if is_running else 0.0, loss, trial.trial_id

        count, metric = len(self.trials) if limit is None else limit, self.facts.metric if self.facts else ""
        rows = [row_of(trial, metric) for trial in heapq.nsmallest(count, self.trials.values(), key=place)]
        return [replace(row, step=max(row.step or 0, self.steps.get(row.trial_id, 0))) for row in rows]

    # ---- how much there is to do -------------------------------------------------------------------------------------
    @property
    def steps_done(self) -> int:
        """Steps trained so far, those of refits included."""
        trained = (max(trial.step, self.steps.get(name, 0)) for name, trial in self.trials.items())
        return sum(trained) + self._refit_steps

    @cached_property
    def trial_steps(self) -> float:
        """How many steps trials are expected to have trained in the end.

        A trial is expected to continue from a report as often as those before it did; where none has got so far,
        always. So it is the most that there can be, until the first trials are stopped early.
        """
        if (facts := self.facts) is None:
            return 0.0
        trials, share = list(self.trials.values()), dict[int, float]()
        trained = sum(trial.step for trial in trials)
        if self.phase is not None and self.num_ended == len(trials) and trials:  # there come no more
            return float(trained)
        rungs = [*range(facts.report_every, facts.max_steps, facts.report_every), facts.max_steps]
        for rung in rungs[:-1]:  # the share that was not stopped, of those that got there and whose fate is known
            passed = sum(rung < trial.step for trial in trials)  # failed trials say nothing of it
            stopped = sum(trial.step == rung and trial.state is TrialState.PRUNED for trial in trials)
            share[rung] = passed / (passed + stopped) if passed + stopped else 1.0

        def to_come(steps: int) -> float:
            """Return the steps that a trial is expected to train beyond these, where it has not been stopped."""
            expected, chance, last = 0.0, 1.0, steps
            for rung in rungs:
                if rung > steps:
                    expected += chance * (rung - last)
                    last, chance = rung, chance * share.get(rung, 1.0)
            return expected

        running = sum(to_come(trial.step) for trial in trials if trial.state is TrialState.RUNNING)
        return trained + running + max(0, self.num_trials - len(trials)) * to_come(0)

    @property
    def refit_steps(self) -> int:
        """Steps of the refits that follow the trials, at most."""
        return self._refit_total or (self.facts.num_refits * self.facts.max_steps if self.facts else 0)

    def share_done(self) -> float:
        """Return how much of all steps is trained, from 0 to 1; 1 when the search has finished."""
        if self.ended is not None and self.ended.state == "finished":
            return 1.0
        total = self.trial_steps + self.refit_steps
        return min(1.0, self.steps_done / total) if total else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Return how long the steps that are left take at the pace so far, refits included; None while that is unknown.

        What follows the last step, scores and files, is counted once it has begun: until then, that is unknown too.
        """
        if self.ended is not None or self.facts is None:
            return None
        pace, budget_s = self._pace, self.facts.time_left_s
        if (phase := self.phase) is not None:
            pace = self._work if self._work.per_s() or phase.unit != "steps" else self._pace
            amount, budget_s = float((phase.total or 0) - (phase.done or 0)), None
        else:
            amount = self.trial_steps + self.refit_steps - sum(trial.step for trial in self.trials.values())
        if amount <= 0 or not (per_s := pace.per_s()):
            return None
        left = amount / per_s - (now - pace.last_at)
        if left <= 0:  # it should be done by now: at the pace that this leaves
            left = amount / (pace.per_s(now) or per_s)
        return left if budget_s is None else min(left, max(0.0, self.facts.at + budget_s - now))

    def _best(self, scores: Mapping[str, Mapping[str, float]]) -> tuple[str, float] | None:
        """Return whose score is best of what has finite ones; None without one."""
        metric = self.facts.metric if self.facts else ""
        known = {
            name: metrics[metric] for name, metrics in scores.items() if math.isfinite(metrics.get(metric, math.nan))
        }
        return min(known.items(), key=lambda item: (-self.sign * item[1], item[0]), default=None)
