"""A home for the searches of a module, and a way to hold the records of a search against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def search_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for the searches of one module."""
    return tmp_path_factory.mktemp("search-home")


@pytest.fixture
def in_search_home(fresh_home: Path, search_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let this test work in the module's home."""
    monkeypatch.setenv("LORAXS_HOME", str(search_home))
    return search_home


@dataclass(frozen=True)
class Records:
    """The same trials as journal, Optuna and MLflow tell them: id -> (state, number of reports)."""

    journal: dict[str, tuple[str, int]]
    optuna: dict[str, tuple[str, int]]
    mlflow: dict[str, tuple[str, int]]


def _read_records(study: str) -> Records:
    from mlflow import MlflowClient

    from loraxs_search.search.proposals import open_optuna_study
    from loraxs_search.studies import StudyFolder

    folder = StudyFolder.open(study)
    task = folder.info.task
    journal = {k: (r.state.value, len(r.reports)) for k, r in folder.journal().records.items()}
    trials = open_optuna_study(folder.optuna_path, study, task.direction).get_trials()
    client = MlflowClient(folder.info.tracking_uri)
    experiment = client.get_experiment_by_name(task.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags and r.info.run_name == study]
    assert len(parents) == 1, "one parent run per search"
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == len({r.data.tags["trial_id"] for r in children}), "one child run per trial"
    return Records(
        journal,
        {f"{t.number:05d}": (t.state.name, len(t.intermediate_values)) for t in trials},
        {
            r.data.tags["trial_id"]: (
                r.data.tags["loraxs.state"],
                len(client.get_metric_history(r.info.run_id, task.metric)),
            )
            for r in children
        },
    )


@pytest.fixture
def agree() -> Callable[[str, int], Records]:
    """Assert that journal, Optuna and MLflow hold the same trials, all ended, none twice, no point missing."""

    def check(study: str, num_trials: int) -> Records:
        records = _read_records(study)
        assert records.journal == records.optuna
        assert records.journal == records.mlflow
        assert len(records.journal) == num_trials
        assert all(state in ("COMPLETE", "PRUNED", "FAIL") for state, _ in records.journal.values())
        return records

    return check
