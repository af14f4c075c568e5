from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from support.toys import HYPERPARAMETERS
from support.tracked import Tracked

from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialState
from loraxs_search.tracking.store import connect


@pytest.fixture
def hyperparameters():
    return HYPERPARAMETERS


@pytest.fixture
def report():
    def make(trial_id: str, step: int, accuracy: float = 0.5) -> TrialReport:
        return TrialReport(
            trial_id=trial_id,
            step=step,
            metrics={"accuracy": accuracy},
            train_loss=0.7,
            device_s=step / 10,
            num_tokens=step * 100,
            size=AdapterSize(r_parameters=32, head_parameters=10, stored_bytes=400),
        )

    return make


@pytest.fixture
def look(store_uri):
    """Read every run, point and logged model of the experiment `exp`; asserts one child per trial."""

    def read(uri: str = store_uri) -> SimpleNamespace:
        client = connect(uri)
        experiment = client.get_experiment_by_name("exp").experiment_id
        parents, children, points = [], {}, {}
        for run in client.search_runs([experiment]):
            if run.data.tags["loraxs.kind"] == "search":
                parents.append(run)
                continue
            trial_id = run.data.tags["trial_id"]
            assert trial_id not in children
            children[trial_id] = run
            points[trial_id] = {
                key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
                for key in run.data.metrics
            }
        models = list(client.search_logged_models([experiment]))
        return SimpleNamespace(parents=parents, children=children, points=points, models=models)

    return read


@pytest.fixture
def adapter_folder(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"R")
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.fixture
def study_dir(tmp_path):
    return tmp_path / "studies" / "s1"


@pytest.fixture
def open_tracker(store_uri, study_dir):
    opened: list[Tracked] = []

    def make(*, uri: str = store_uri, folder: Path = study_dir, study: str = "s1") -> Tracked:
        opened.append(Tracked(study, folder, uri, "exp"))
        return opened[-1]

    yield make
    for tracker in opened:
        tracker.close(timeout=0.1)


@pytest.fixture
def record(hyperparameters, report):
    """Tell a tracker of a search of three trials, one of each end."""

    def run(tracker: Tracked) -> None:
        tracker.search_started("task:\n  name: toy\n", SearchPlan(trials=3), params={"task": "toy"}, gpus=("H100",))
        ends = (TrialState.COMPLETE, "ran all steps"), (TrialState.PRUNED, "weak at step 80"), (TrialState.FAIL, "NaN")
        for number, (state, reason) in enumerate(ends):
            trial_id = f"t{number}"
            tracker.trial_started(trial_id, {"rank": 4, "learning_rate": 0.001}, hyperparameters)
            for step in (40, 80):
                tracker.trial_reported(report(trial_id, step, 0.5 + step / 1000))
            tracker.trial_finished(trial_id, state, reason, wall_s=12.5)
        tracker.search_finished("FINISHED", {"best_accuracy": 0.58, "best_trial": "t0"})

    return run
