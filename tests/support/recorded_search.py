"""A search as events, in a time of its own: for views and for who follows a study."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from loraxs_search.log.events import (
    BaselineScored,
    CandidateScored,
    Phase,
    SearchStarted,
    ShownEvent,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from loraxs_search.records.task import DataSource, Task
from loraxs_search.records.trial import AdapterSize, TrialRecord, TrialReport, TrialState

TASK = Task("reviews", "regression", DataSource(hub="a/b"), "text", "label", "pearson", "maximize", ("pearson",))
NODES = ("10.0.0.3", "10.0.0.4")
FACTS = SearchStarted(
    study="mine",
    at=1000.0,
    task=TASK.name,
    metric="pearson",
    direction="maximize",
    num_trials=4,
    max_steps=80,
    report_every=20,
    num_refits=2,
    device="cpu",
    dtype="float32",
    num_slots=4,
    slots={NODES[0]: 2, NODES[1]: 2},
)


class Teller:
    """Tells what has happened to trials since it last had their records, as a log does."""

    def __init__(
        self, happened: Callable[[ShownEvent], None], known: Callable[[ShownEvent], None] = lambda _: None
    ) -> None:
        self._happened, self._known = happened, known
        self._told: dict[str, TrialRecord] = {}

    def phase(self, text: str) -> None:
        self._happened(Phase(study="mine", at=time.time(), text=text))

    def started(self, facts: SearchStarted, *trials: TrialRecord) -> None:
        self._happened(facts)
        for record in trials:
            self._pass_on(record, self._known)

    def trial_changed(self, record: TrialRecord) -> None:
        self._pass_on(record, self._happened)

    def noted(self, event: ShownEvent) -> None:
        self._happened(event)

    def _pass_on(self, record: TrialRecord, happened: Callable[[ShownEvent], None]) -> None:
        name, told = record.trial_id, self._told.get(record.trial_id)
        self._told[name] = record
        if told is None:
            happened(TrialStarted(study="mine", at=record.started_at, trial_id=name, params=record.params))
        since = len(told.reports) if told else 0
        for report, at in zip(record.reports[since:], record.reported_at[since:], strict=True):
            happened(TrialReported(study="mine", at=at, report=report))
        if record.state is not TrialState.RUNNING and (told is None or told.state is TrialState.RUNNING):
            at = record.ended_at or 0.0
            happened(TrialEnded(study="mine", at=at, trial_id=name, state=record.state, reason=record.reason))


def begun(number: int, at: float) -> TrialRecord:
    params = {"rank": 4 * (number + 1), "learning_rate": 0.00123, "target_modules": "attention"}
    return TrialRecord(f"{number:05d}", params, TrialState.RUNNING, started_at=at)


def reported(record: TrialRecord, step: int, score: float, at: float) -> TrialRecord:
    """Return a trial with one report more, from its node."""
    size, node = AdapterSize(16, 4, 31_008), NODES[int(record.trial_id) % 2]
    report = TrialReport(record.trial_id, step, {"pearson": score}, 1.0, step / 10, 10 * step, size, host=node)
    return replace(record, reports=(*record.reports, report), reported_at=(*record.reported_at, at))


def closed(record: TrialRecord, state: TrialState, at: float, reason: str = "so") -> TrialRecord:
    return replace(record, state=state, ended_at=at, reason=reason)


def training() -> Iterator[ShownEvent]:
    """Yield a search of 4 trials up to the middle: one is complete, one was stopped early, two run.

    20 s after its start each of two nodes trains 2 steps a second.
    """
    events: list[ShownEvent] = []
    view = Teller(events.append)
    view.phase("starting Ray")
    view.started(FACTS)
    trials = [begun(number, 1000.0) for number in range(4)]
    for trial in trials:
        view.trial_changed(trial)
    view.noted(BaselineScored(study="mine", at=1005.0, name="constant", metrics={"pearson": 0.1}))
    view.noted(BaselineScored(study="mine", at=1005.0, name="tfidf", metrics={"pearson": 0.42}))
    for step, at in ((20, 1020.0), (40, 1040.0), (60, 1060.0), (80, 1080.0)):
        for number in (0,) if step > 40 else (0, 2, 3) if step > 20 else (0, 1, 2, 3):
            trials[number] = reported(trials[number], step, 0.2 + step / 200 - number / 10, at)
            view.trial_changed(trials[number])
        if step == 20:
            trials[1] = closed(trials[1], TrialState.PRUNED, at)
            view.trial_changed(trials[1])
    view.trial_changed(closed(trials[0], TrialState.COMPLETE, 1080.0, "trained all 80 steps"))
    # What was said before the start has the time of the test itself.
    yield from (replace(event, at=990.0) if isinstance(event, Phase) else event for event in events)


def finishing() -> Iterator[ShownEvent]:
    """Yield the rest of it: the others are stopped, two refits are half trained, a candidate is scored."""
    events: list[ShownEvent] = []
    view = Teller(events.append)
    refits = "training the best 1 again from 2 fresh seeds"
    phase = Phase(study="mine", at=1100.0, text=refits)
    for event in training():
        if isinstance(event, TrialStarted) and (name := event.trial_id) in ("00002", "00003"):
            record = TrialRecord(name, event.params, TrialState.PRUNED, "so", started_at=1000.0, ended_at=1099.0)
            view.trial_changed(record)
    yield from (event for event in events if event.event == "ended")
    yield phase
    for done, at in ((0, 1100.0), (40, 1110.0), (80, 1120.0)):
        yield replace(phase, at=at, done=done, total=160, unit="steps")
    yield CandidateScored(study="mine", at=1130.0, trial="00000", split="validation", metrics={"pearson": 0.61})
