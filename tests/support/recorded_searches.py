"""Whole searches as their journals have them, without training: curves, hosts, times, a finalist, baselines."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, distribution_to_json

from loraxs_search.records.codec import to_json
from loraxs_search.records.promotion import Baseline, Candidate, Refit
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialState
from loraxs_search.studies.folder import StudyFolder
from support.searched_studies import IDENTITY
from support.studies import TASK, study

STEPS, EVERY = 160, 40
BEGAN = 1_790_000_000.0  # seconds since 1970
MODULES = {"attention": 1.0, "ffn": 0.6, "all-linear": 1.6}
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "rank": CategoricalDistribution([4, 8, 16]),
    "learning_rate": FloatDistribution(1e-3, 1e-1, log=True),
    "target_modules": CategoricalDistribution(list(MODULES)),
}
DIVERGED = "its loss must be finite, but is nan at step 12"


@dataclass
class Slots:
    """Who trains when: each trial takes the slot that is free first."""

    hosts: Sequence[str]
    each: int = 4
    free_at: list[tuple[float, str]] = field(default_factory=list)

    def take(self) -> tuple[float, str]:
        if not self.free_at:
            self.free_at = [(BEGAN + 20.0 + number, host) for number in range(self.each) for host in self.hosts]
        return self.free_at.pop(self.free_at.index(min(self.free_at)))


def recorded_search(
    name: str,
    num_trials: int,
    *,
    task: Task = TASK,
    hosts: Sequence[str] = ("10.0.0.1 GPU 0", "10.0.0.2 GPU 0"),
    finished: bool = True,
    space: str = "task: sst2\n",
) -> StudyFolder:
    """Write a search; one that is not finished has running trials, and no candidates."""
    plan = SearchPlan(trials=num_trials, max_steps=STEPS, report_every=EVERY)
    folder = study(name, task=task, search=plan)
    (folder.path / "space.yaml").write_text(space)
    folder.identity.write(IDENTITY)
    draw, slots = random.Random(0), Slots(hosts)
    trials = [_trial(f"{number:05d}", draw, slots, task.search_metric) for number in range(num_trials)]
    if not finished:
        trials[-3:] = [
            (params, [event for event in events if event["event"] != "ended"]) for params, events in trials[-3:]
        ]
    events = sorted((event for _, own in trials for event in own), key=lambda event: event["at"])
    started = {"event": "driver_started", "since": BEGAN, "at": BEGAN + 15.0}
    lines = [started, *events, *([{"event": "search_ended", "notice": "", "at": events[-1]["at"]}] if finished else [])]
    (folder.path / "journal.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    _choose(folder, finished)
    return folder


Events = list[dict[str, Any]]


def _trial(trial_id: str, draw: random.Random, slots: Slots, metric: str) -> tuple[dict[str, Any], Events]:
    params = {
        "rank": draw.choice([4, 8, 16]),
        "learning_rate": 10 ** draw.uniform(-3, -1),
        "target_modules": draw.choice(list(MODULES)),
        "batch_size": 16,
    }
    return params, list(_events(trial_id, params, draw, slots, metric))


def _events(
    trial_id: str, params: dict[str, Any], draw: random.Random, slots: Slots, metric: str
) -> Iterator[dict[str, Any]]:
    """Yield what a journal has of a trial. The best rate is 0.01, more rank and more modules help a little."""
    at, host = slots.take()
    drawn = {name: params[name] for name in DISTRIBUTIONS}
    proposal = {
        "params": drawn,
        "distributions": {name: json.loads(distribution_to_json(DISTRIBUTIONS[name])) for name in drawn},
    }
    yield {"event": "started", "trial_id": trial_id, "params": params, "proposal": proposal, "at": at}
    miss = abs(math.log10(params["learning_rate"]) + 2)
    ceiling = 0.8 - 0.12 * miss + 0.03 * math.log2(params["rank"] / 4) * 0.5 + 0.02 * MODULES[params["target_modules"]]
    stored = round(9000 * params["rank"] / 4 * MODULES[params["target_modules"]])
    state, reason, device_s = TrialState.COMPLETE, "", 0.0
    for step in range(EVERY, STEPS + 1, EVERY):
        if draw.random() < 0.012:
            state, reason = TrialState.FAIL, DIVERGED
            break
        seconds = draw.uniform(8, 12)
        at, device_s = at + seconds, device_s + 0.9 * seconds / slots.each
        score = ceiling - 0.3 * math.exp(-step / 50) + draw.gauss(0, 0.008)
        report = TrialReport(
            trial_id,
            step,
            {metric: score},
            0.5,
            device_s,
            100 * step,
            AdapterSize(params["rank"] ** 2 * 12, 770, stored),
            host=host,
        )
        yield {"event": "reported", "report": json.loads(to_json(report)), "at": at}
        if step < STEPS and draw.random() < (0.75 if score < 0.74 - 0.3 * math.exp(-step / 50) else 0.1):
            state, reason = (
                TrialState.PRUNED,
                f"ASHA stopped it at step {step}: {score:.4g} is not among the best 1/2 that reached this step",
            )
            break
    slots.free_at.append((at + 0.5, host))
    yield {"event": "ended", "trial_id": trial_id, "state": state.value, "reason": reason, "at": at}


def _choose(folder: StudyFolder, finished: bool) -> None:
    task = folder.info.task
    scores = (("constant", 0.52), ("tfidf", 0.79), ("features", 0.76))
    folder.write_baselines(
        [Baseline(name, {task.metric: score}, {task.metric: score - 0.01}, seconds=0.5) for name, score in scores]
    )
    complete = [record for record in folder.journal().records.values() if record.state is TrialState.COMPLETE]
    if not finished or not complete:
        return
    best = sorted(complete, key=lambda record: -record.reports[-1].metrics[task.search_metric])[:3]
    candidates = []
    for place, record in enumerate(best):
        score = record.reports[-1].metrics[task.search_metric]
        refits = (Refit(1, {task.metric: score - 0.012}), Refit(2, {}, failed=DIVERGED))
        candidates.append(
            Candidate(
                *(folder.name, record.trial_id, task.name),
                {task.metric: score - 0.008} if place == 0 else {},
                {task.metric: score - 0.004},
                record.reports[-1].size.stored_bytes,
                IDENTITY.data_fingerprint,
                IDENTITY.base_digest,
                refits=refits,
            )
        )
    folder.write_candidates(candidates)
