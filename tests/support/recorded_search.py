"""A search as events, in a time of its own: for views and for who follows a study."""

from __future__ import annotations

from dataclasses import replace

from loraxs_search.log.events import (
    Phase,
    RowsScored,
    SearchStarted,
    ShownEvent,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialState

NODES = ("10.0.0.3", "10.0.0.4")
FACTS = SearchStarted(
    study="mine",
    at=1000.0,
    task="reviews",
    metric="pearson",
    direction="maximize",
    num_trials=4,
    max_steps=80,
    report_every=20,
    num_refits=2,
    device="cpu",
    dtype="float32",
    num_slots=4,
)


def begun(number: int, at: float) -> TrialStarted:
    params = {"rank": 4 * (number + 1), "learning_rate": 0.00123, "target_modules": "attention"}
    return TrialStarted(study="mine", at=at, trial_id=f"{number:05d}", params=params)


def reported(number: int, step: int, score: float, at: float) -> TrialReported:
    """Return a trial's report from its node."""
    size, node = AdapterSize(16, 4, 31_008), NODES[number % 2]
    report = TrialReport(f"{number:05d}", step, {"pearson": score}, 1.0, step / 10, 10 * step, size, host=node)
    return TrialReported(study="mine", at=at, report=report)


def ended(number: int, state: TrialState, at: float, reason: str = "so") -> TrialEnded:
    return TrialEnded(study="mine", at=at, trial_id=f"{number:05d}", state=state, reason=reason)


def training() -> list[ShownEvent]:
    """Return a search of 4 trials up to the middle: one is complete, one was stopped early, two run.

    20 s after its start each of two nodes trains 2 steps a second.
    """
    events = [
        Phase(study="mine", at=990.0, text="starting Ray"),
        FACTS,
        *(begun(number, 1000.0) for number in range(4)),
    ]
    events += [
        RowsScored(study="mine", at=1005.0, what="baseline", split="validation", name=name, metrics={"pearson": score})
        for name, score in (("constant", 0.1), ("tfidf", 0.42))
    ]
    for step, at in ((20, 1020.0), (40, 1040.0), (60, 1060.0), (80, 1080.0)):
        running = (0,) if step > 40 else (0, 2, 3) if step > 20 else (0, 1, 2, 3)
        events += [reported(number, step, 0.2 + step / 200 - number / 10, at) for number in running]
        events += [ended(1, TrialState.PRUNED, at)] if step == 20 else []
    return [*events, ended(0, TrialState.COMPLETE, 1080.0, "trained all 80 steps")]


def finishing() -> list[ShownEvent]:
    """Return the rest of it: the others are stopped, two refits are half trained, a candidate is scored."""
    phase = Phase(study="mine", at=1100.0, text="training the best 1 again from 2 fresh seeds")
    counted = [replace(phase, at=1100.0 + done / 4, done=done, total=160, unit="steps") for done in (0, 40, 80)]
    scored = RowsScored(
        study="mine", at=1130.0, what="candidate", name="00000", split="validation", metrics={"pearson": 0.61}
    )
    return [*(ended(number, TrialState.PRUNED, 1099.0) for number in (2, 3)), phase, *counted, scored]
