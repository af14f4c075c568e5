"""A home for the searches of a module, and a way to hold the records of a search against each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults.records import Losses, Records, losses, read_records


@pytest.fixture(scope="module")
def search_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for the searches of one module."""
    return tmp_path_factory.mktemp("search-home")


@pytest.fixture
def in_search_home(fresh_home: Path, search_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let this test work in the module's home."""
    monkeypatch.setenv("LORAXS_HOME", str(search_home))
    return search_home


@pytest.fixture
def agree() -> Callable[[str, int], Records]:
    """Assert that journal, Optuna and MLflow hold the same trials, all ended, none twice, no point missing."""

    def check(study: str, num_trials: int) -> Records:
        records = read_records(study)
        assert records.num_parents == 1, "one parent run per search"
        assert records.journal == records.optuna
        assert records.journal == records.mlflow
        assert losses(records, num_trials) == Losses()
        return records

    return check
