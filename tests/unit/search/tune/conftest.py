"""A study for a driver that people ask for trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.asked_driver import PLAN, write_space
from support.studies import TASK, study

from loraxs_search.studies.folder import StudyFolder


@pytest.fixture
def folder(fresh_home: Path) -> StudyFolder:
    made = study("s", f"sqlite:///{fresh_home}/mlflow.db", task=TASK, search=PLAN)
    write_space(made)
    return made


@pytest.fixture
def plain_specs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec of these tests is none that could be sent."""
    monkeypatch.setattr("loraxs_search.search.tune.loop.to_json", lambda record: "")
