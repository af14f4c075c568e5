"""Studies as `launch` makes them, without a search: recorded, worked off at once, or long unused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, distribution_to_json
from optuna.trial import FixedTrial

from loraxs_search.errors import LoraxsError, UsageError
from loraxs_search.log.events import (
    DriverStarted,
    LoggedEvent,
    Phase,
    RowsScored,
    SearchStarted,
    ShownEvent,
    TrainingEnded,
    TrialEnded,
    TrialReported,
    TrialStarted,
    Warned,
)
from loraxs_search.log.study_log import StudyLog
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.records.codec import Scalar, to_json
from loraxs_search.records.search import Baseline, Candidate, PromotionRule, Refit, SearchPlan
from loraxs_search.records.task import BaseModelRef, DataSource, Identity, Task
from loraxs_search.records.trial import AdapterSize, Proposal, TrialReport, TrialState
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.search.driver.work_items import WorkItem
from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.space import Space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.record_files import StudyInfo
from loraxs_search.studies.storage import Storage
from support.toys import HYPERPARAMETERS

TASK = Task("t", "sequence-classification", DataSource(), "text", "label", "accuracy", "maximize", ("accuracy",))


def study(
    name: str,
    uri: str | None = None,
    *,
    storage: str | None = None,
    task: Task = TASK,
    search: SearchPlan | None = None,
    promotion: PromotionRule | None = None,
) -> StudyFolder:
    """Create a study in which nothing has been tried."""
    plan, rule = search or SearchPlan(), promotion or PromotionRule(require="constant")
    where = ("s.yaml", "/", uri or resolve_uri(), time.time())
    info = StudyInfo(name, uuid.uuid4().hex, task, BaseModelRef("b"), plan, rule, *where, storage=storage)
    return StudyFolder.create(info, "task: sst2\n")


def state(trial_id: str, mark: str = "", **header: object) -> bytes:
    """Return a snapshot without tensors; those with another mark have other bytes."""
    own = json.dumps({"trial_id": trial_id, "reports": [], "mark": mark, **header})
    encoded = json.dumps({"__metadata__": {"trial": own}}).encode()
    return len(encoded).to_bytes(8, "little") + encoded


def mirrored_study(home: Path, storage: Storage) -> StudyFolder:
    """Return a study whose copy is in `storage`."""
    return study("s", f"sqlite:///{home}/mlflow.db", storage=storage.uri)


def within(event: threading.Event) -> None:
    """Wait for what another thread does; a test that waits in vain fails."""
    assert event.wait(60)


class SlowStorage(Storage):
    """Holds back copies while `gate` is closed, signs of life while `beats` is; says when one of these is written."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.gate, self.held, self.beat = threading.Event(), threading.Event(), threading.Event()
        self.beats = threading.Event()
        self.gate.set()
        self.beats.set()

    def write(self, key: str, content: bytes, version: str | None) -> str:
        if "/lease/" not in key:
            if not self.gate.is_set():
                self.held.set()
            within(self.gate)
        else:
            within(self.beats)
        written = super().write(key, content, version)
        if "/lease/" in key:
            self.beat.set()
        return written


IDENTITY = Identity("base" * 16, "data" * 16)


@dataclass(frozen=True)
class Tried:
    """A trial and how it ended: complete with its last score, or pruned, failed or running as `state` says.

    Args:
        scores: One for each report; by default `score` in the first and, if it is complete, in the last one.
        times: When it began, reported and ended, seconds since 1970; by default now.
    """

    params: Mapping[str, Scalar]
    score: float
    stored_bytes: int = 1000
    r_parameters: int = 100
    state: TrialState = TrialState.COMPLETE
    without_projection: int | None = None
    scores: Sequence[float] = ()
    times: Sequence[float] = ()
    device_s: Sequence[float] = ()
    host: str = ""
    reason: str = ""
    proposal: Proposal | None = None

    def events(self, trial_id: str, task: Task, plan: SearchPlan, proposal: Proposal) -> list[LoggedEvent]:
        """Return what a log has of it."""
        events: list[LoggedEvent] = [TrialStarted(trial_id=trial_id, params=self.params, proposal=proposal)]
        size = AdapterSize(self.r_parameters, 10, self.stored_bytes, self.without_projection)
        steps = [plan.report_every, *([plan.max_steps] if self.state is TrialState.COMPLETE else [])]
        points = [(step, self.score) for step in steps if self.state is not TrialState.FAIL]
        if self.times:
            points = [(plan.report_every * number, score) for number, score in enumerate(self.scores, 1)]
        for number, (step, score) in enumerate(points):
            metrics = dict.fromkeys((*task.metrics, task.metric, task.search_metric), score)
            device_s = self.device_s[number] if self.device_s else step / 10
            report = TrialReport(trial_id, step, metrics, 0.5, device_s, 100 * step, size, host=self.host)
            events.append(TrialReported(report=report))
        if self.state is not TrialState.RUNNING:
            reason = self.reason or ("it failed" if self.state is TrialState.FAIL else "")
            events.append(TrialEnded(trial_id=trial_id, state=self.state, reason=reason))
        return [replace(event, at=at) for event, at in zip(events, self.times, strict=False)] if self.times else events


def searched(
    name: str,
    trials: Sequence[Tried],
    *,
    task: Task = TASK,
    space: str = "task: sst2\n",
    identity: Identity | None = IDENTITY,
    finished: bool = True,
    max_steps: int = 20,
    every: int = 10,
    plan: SearchPlan | None = None,
    promotion: PromotionRule | None = None,
) -> StudyFolder:
    """Create a study with these trials; a finished one has its best trial as only candidate, without refits."""
    made = replace(plan or SearchPlan(), trials=max(1, len(trials)), max_steps=max_steps, report_every=every)
    folder = study(name, task=task, search=made, promotion=promotion)
    (folder.path / "space.yaml").write_text(space)
    known: Space | None = None
    with contextlib.suppress(UsageError):  # the text is none
        known = parse_space(space, source="space.yaml", folder=folder.path)
        (folder.path / "space.json").write_text(to_json(replace(known, text="")))  # as at launch
    if identity is not None:
        folder.identity.write(identity)
    events = list[LoggedEvent]()
    for number, tried in enumerate(trials):
        drawn = tried.proposal or (proposal(known, tried.params) if known else chosen(trials, tried.params))
        events += tried.events(f"{number:05d}", task, made, drawn)
    if trials and trials[0].times:
        events = [DriverStarted(since=BEGAN, at=BEGAN + 15.0), *sorted(events, key=lambda event: event.at)]
        events += [TrainingEnded(notice="", at=events[-1].at)] if finished else []
    folder.journal_path.write_bytes(b"".join(event.to_line() for event in events))
    if finished:
        folder.write_candidates([])
    return folder


def proposal(space: Space, params: Mapping[str, Scalar]) -> Proposal:
    """Return params of a space as a sampler would have proposed them."""
    fixed = FixedTrial(space.drawn_params(params))
    space.suggest(fixed)
    distributions = {name: json.loads(distribution_to_json(each)) for name, each in fixed.distributions.items()}
    return Proposal(fixed.params, distributions)


def chosen(trials: Sequence[Tried], params: Mapping[str, Scalar]) -> Proposal:
    """Return params as if each was one of those that some trial has."""
    choices = {name: list(dict.fromkeys(it.params[name] for it in trials if name in it.params)) for name in params}
    distributions = {name: CategoricalDistribution(values) for name, values in choices.items()}
    return Proposal(params, {name: json.loads(distribution_to_json(each)) for name, each in distributions.items()})


def confirm(
    folder: StudyFolder,
    trial_id: str,
    scores: Sequence[float],
    answers: Sequence[int] | None = None,
    labels: Sequence[int] = (),
    test_fingerprint: str = "test",
    slices: Mapping[str, Sequence[str]] | None = None,
    **changes: object,
) -> None:
    """Make a trial a candidate of its study, beside those that there are.

    Args:
        scores: Its own on validation rows, then those of its refits.
        answers: To the test rows; with these it is the finalist.
        slices: Of the test rows, by column.
        changes: Fields of the candidate.
    """
    task, candidates = folder.info.task, folder.candidates() or []
    refits = [Refit(number, {task.metric: score}) for number, score in enumerate(scores[1:], start=1)]
    tested = {} if answers is None else {task.metric: sum(map(int.__eq__, answers, labels)) / len(labels)}
    record = folder.journal().records[trial_id]
    stored, known = record.reports[-1].size.stored_bytes, (IDENTITY.data_fingerprint, IDENTITY.base_digest)
    candidate = Candidate(
        folder.name, trial_id, task.registered_name, tested, {task.metric: scores[0]}, stored, *known,
        refits=tuple(refits), test_fingerprint=test_fingerprint,
    )  # fmt: skip
    if answers is not None:
        folder.confirmed.keep_finalist(candidate, ScoredRows.of(answers, labels, slices=slices).to_bytes())
    folder.write_candidates([*candidates, replace(candidate, **changes)])  # type: ignore[arg-type]


# ---- a search with curves, hosts and times ---------------------------------------------------------------------------
STEPS, EVERY = 160, 40
BEGAN = 1_790_000_000.0  # seconds since 1970
MODULES = {"attention": 1.0, "ffn": 0.6, "all-linear": 1.6}
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "rank": CategoricalDistribution([4, 8, 16]),
    "learning_rate": FloatDistribution(1e-3, 1e-1, log=True),
    "target_modules": CategoricalDistribution(list(MODULES)),
}
DIVERGED = "its loss must be finite, but is nan at step 12"


def recorded_search(name: str, num_trials: int, *, task: Task = TASK, finished: bool = True) -> StudyFolder:
    """Make a study of trials on four slots of two hosts; one not finished has running trials, and no candidates."""
    draw = random.Random(0)
    free_at = [(BEGAN + 20.0 + number, host) for number in range(4) for host in ("10.0.0.1 GPU 0", "10.0.0.2 GPU 0")]
    trials = [_drawn(draw, free_at) for _ in range(num_trials)]
    if not finished:
        trials[-3:] = [replace(trial, state=TrialState.RUNNING) for trial in trials[-3:]]
    folder = searched(name, trials, task=task, max_steps=STEPS, every=EVERY, finished=finished)
    scores = (("constant", 0.52), ("tfidf", 0.79), ("features", 0.76))
    folder.write_baselines(
        [Baseline(own, {task.metric: score}, {task.metric: score - 0.01}, seconds=0.5) for own, score in scores]
    )
    complete = {f"{i:05d}": trial.scores[-1] for i, trial in enumerate(trials) if trial.state is TrialState.COMPLETE}
    best = sorted(complete.items(), key=lambda trial: -trial[1])[:3] if finished else []
    for place, (trial_id, score) in enumerate(best):
        refits = (Refit(1, {task.metric: score - 0.012}), Refit(2, {}, failed=DIVERGED))
        tested = {} if place else {task.metric: score - 0.008}
        confirm(folder, trial_id, [score - 0.004], test_fingerprint="", refits=refits, test_metrics=tested)
    return folder


def _drawn(draw: random.Random, free_at: list[tuple[float, str]]) -> Tried:
    """Return a trial in the slot that is free first. The best rate is 0.01, more rank and modules help a little."""
    rank, rate, modules = draw.choice([4, 8, 16]), 10 ** draw.uniform(-3, -1), draw.choice(list(MODULES))
    params: dict[str, Scalar] = {"rank": rank, "learning_rate": rate, "target_modules": modules, "batch_size": 16}
    at, host = free_at.pop(free_at.index(min(free_at)))
    miss = abs(math.log10(rate) + 2)
    ceiling = 0.8 - 0.12 * miss + 0.03 * math.log2(rank / 4) * 0.5 + 0.02 * MODULES[modules]
    state, reason, scores, times, device_s = TrialState.COMPLETE, "", list[float](), [at], [0.0]
    for step in range(EVERY, STEPS + 1, EVERY):
        if draw.random() < 0.012:
            state, reason = TrialState.FAIL, DIVERGED
            break
        seconds = draw.uniform(8, 12)
        at += seconds
        times.append(at)
        device_s.append(device_s[-1] + 0.9 * seconds / 4)
        scores.append(ceiling - 0.3 * math.exp(-step / 50) + draw.gauss(0, 0.008))
        if step < STEPS and draw.random() < (0.75 if scores[-1] < 0.74 - 0.3 * math.exp(-step / 50) else 0.1):
            state = TrialState.PRUNED
            reason = (
                f"ASHA stopped it at step {step}: {scores[-1]:.4g} is not among the best 1/2 that reached this step"
            )
            break
    free_at.append((at + 0.5, host))
    return Tried(
        params,
        scores[-1] if scores else 0.0,
        round(9000 * rank / 4 * MODULES[modules]),
        rank**2 * 12,
        state,
        scores=scores,
        times=[*times, at],
        device_s=device_s[1:],
        host=host,
        reason=reason,
        proposal=Proposal(
            {name: params[name] for name in DISTRIBUTIONS},
            {name: json.loads(distribution_to_json(each)) for name, each in DISTRIBUTIONS.items()},
        ),
    )


# ---- a search as events, in a time of its own: for views and for who follows a study ---------------------------------
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


# ---- a search that goes on -------------------------------------------------------------------------------------------
class ScriptedDriver:
    """Has happen to a study, and to who watches it, what a search does, without training."""

    def __init__(self, folder: StudyFolder) -> None:
        self.seen: list[ShownEvent] = []
        self.folder, self.journal = folder, StudyLog(folder.journal_path, folder.name, self)

    def happened(self, event: ShownEvent) -> None:
        self.seen.append(event)

    def known(self, event: ShownEvent) -> None:
        """Pass over an event of an earlier driver."""

    def begin(self) -> None:
        plan, task = self.folder.info.search, self.folder.info.task
        self.journal.append(DriverStarted(since=1.0))
        known = {"study": self.folder.name, "at": 100.0, "task": task.name, "metric": task.search_metric}
        known |= {"direction": task.search_direction, "num_trials": plan.trials, "max_steps": plan.max_steps}
        self.journal.say(replace(FACTS, **known, report_every=1, num_refits=0, num_slots=2))

    def train(self, trial_id: str, steps: int) -> None:
        self.journal.append(TrialStarted(trial_id=trial_id, params={"rank": 4}, hyperparameters=HYPERPARAMETERS))
        for step in range(20, steps + 1, 20):
            report = TrialReport(trial_id, step, {"accuracy": 0.5}, 1.0, 1.0, 10, AdapterSize(16, 4, 80), host="a")
            self.journal.append(TrialReported(report=report))

    def end(self, trial_id: str, state: TrialState) -> None:
        self.journal.append(TrialEnded(trial_id=trial_id, state=state, reason="so"))

    def finish(self) -> None:
        self.journal.append(TrainingEnded(notice=""))
        self.journal.phase("training the best 1 again from 1 fresh seeds")
        self.journal.phase(done=20, total=40, unit="steps")
        self.journal.say(Warned(text="many answers were cut"))
        self.journal.say(RowsScored(what="baseline", split="validation", name="constant", metrics={"accuracy": 0.4}))
        self.journal.say(RowsScored(what="candidate", name="00000", split="validation", metrics={"accuracy": 0.6}))
        self.journal.close()
        self.journal.phase("writing the last records to MLflow")
        self.journal.append(TrainingEnded(notice=""))
        confirm(self.folder, "00000", [0.6])


DAY_S = 24 * 3600.0


def age(path: Path, days: float = 60.0) -> None:
    """Have a file, or all of a folder, be unused for so long."""
    at = time.time() - days * DAY_S
    for file in (path, *path.rglob("*")):
        os.utime(file, (at, at))


def pulled(home: Path, name: str, digest: str) -> None:
    """Note that a name meant a digest when it was pulled."""
    path = home / "adapters" / "names.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(names | {f"sqlite:///x.db {name}": {"digest": digest}}))


def base_name(name: str) -> str:
    """Return how the folder of a base model is called that `base` makes."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def do_all(items: Sequence[WorkItem], host: Any) -> None:
    """Do all items; what the host raises is its answer, as over Ray."""
    for item in items:
        try:
            ask = next(item)
            while True:
                try:
                    answer = ask(host)
                except LoraxsError as error:
                    ask = item.throw(error)
                else:
                    ask = item.send(answer)
        except StopIteration:
            pass
