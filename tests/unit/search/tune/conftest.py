"""A study for a driver that people ask for trials."""

from __future__ import annotations

import pytest
from support.asked_driver import PLAN, write_space
from support.studies import TASK, study


@pytest.fixture
def folder(fresh_home):
    made = study("s", f"sqlite:///{fresh_home}/mlflow.db", task=TASK, search=PLAN)
    write_space(made)
    return made


@pytest.fixture
def plain_specs(monkeypatch):
    """A spec of these tests is none that could be sent."""
    monkeypatch.setattr("loraxs_search.search.tune.loop.to_json", lambda record: "")
