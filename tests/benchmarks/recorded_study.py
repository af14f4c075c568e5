"""A study of thousands of trials that have ended, written without running one, and what a resumed driver does then."""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from loraxs_search.records import AdapterSize, Hyperparameters, TrialReport, TrialState, to_json
from loraxs_search.samplers.proposer import Proposer
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.schedulers import make_scheduler
from loraxs_search.search.ledger import Ledger, SilentView
from loraxs_search.search_space import Space, load_space
from loraxs_search.studies import StudyFolder, StudyInfo
from loraxs_search.tracking.tracker import Tracker

HYPER = Hyperparameters(rank=8, target_modules=("q",), learning_rate=1e-3, head_learning_rate=1e-3)
SIZE = AdapterSize(2304, 770, 17_032)


class Laps:
    """Seconds of each step, by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def take_up(num_trials: int, num_proposals: int = 10) -> dict[str, Any]:
    """Return the seconds of each step of taking up such a study, and of a proposal."""
    laps = Laps()
    with tempfile.TemporaryDirectory(prefix="loraxs-recorded-") as home:
        os.environ["LORAXS_HOME"] = home
        space = load_space("movie_reviews")
        folder = write(space, num_trials, f"sqlite:///{home}/mlflow.db")
        with laps.lap("tracker"):
            tracker = Tracker(folder.name, folder.path, folder.info.tracking_uri, space.task.name)
        with laps.lap("journal"):
            journal = folder.journal()
        with laps.lap("optuna"):
            trials = StudyTrials(space.task, space.search, lambda: space)
            ledger = Ledger(folder.name, SilentView())
            ledger.open(journal, trials)
        with laps.lap("recover"):
            ledger.recover(folder)
        with laps.lap("asha"):
            make_scheduler(space.search, space.task.direction).replay(journal.reports, space.task.metric)
        proposer = Proposer(trials, space)
        proposer.propose(seed=0)  # the first one ranks the history
        with laps.lap("proposals"):
            for seed in range(num_proposals):
                proposer.propose(seed)
        tracker.close()
    seconds = laps.seconds
    proposal_ms = round(1000 * seconds.pop("proposals") / num_proposals, 1)
    mb = round(psutil.Process().memory_info().rss / 2**20)
    return {"trials": num_trials, "resume_s": seconds, "total_s": round(sum(seconds.values()), 1)} | {
        "proposal_ms": proposal_ms,
        "mb": mb,
    }


def write(space: Space, num_trials: int, uri: str) -> StudyFolder:
    """Write the study as a driver would have: a log that MLflow has."""
    info = StudyInfo(
        "recorded", "id", space.task, space.base_model, space.search, space.promotion, "", "/", uri, time.time()
    )
    folder = StudyFolder.create(info, space.text)
    draw = random.Random(0)
    trials = [_trial(f"{number:05d}", draw) for number in range(num_trials)]
    (folder.path / "journal.jsonl").write_text("".join(f"{line}\n" for trial in trials for line in _journal(*trial)))
    (folder.path / "mlflow.offset").write_text(str(folder.journal_path.stat().st_size))
    return folder


Ended = tuple[str, dict[str, Any], list[TrialReport], TrialState]


def _trial(trial_id: str, draw: random.Random) -> Ended:
    pruned, score = draw.random() < 0.6, draw.random()
    steps = (40, 80, 120, 160)[: draw.choice((1, 2)) if pruned else 4]
    params = {"rank": 8, "target_modules": "ffn"}
    params |= {"learning_rate": draw.uniform(2e-3, 1.6e-2), "head_learning_rate": draw.uniform(3e-3, 2e-2)}
    metrics = {"accuracy": score, "f1": score, "loss": 1 - score}
    reports = [TrialReport(trial_id, step, metrics, 0.5, 1.0, 1000, SIZE) for step in steps]
    return trial_id, params, reports, TrialState.PRUNED if pruned else TrialState.COMPLETE


def _journal(trial_id: str, params: dict[str, Any], reports: list[TrialReport], state: TrialState) -> Iterator[str]:
    yield json.dumps({"event": "started", "trial_id": trial_id, "params": params, "at": 1.0})
    for report in reports:
        yield json.dumps({"event": "reported", "report": json.loads(to_json(report)), "at": 1.5})
    yield json.dumps({"event": "ended", "trial_id": trial_id, "state": state.value, "reason": "so", "at": 2.0})
