"""The command line in this process, for what needs no search."""

from __future__ import annotations

import pytest
from support.studies import ScriptedDriver, study

from loraxs_search.base_model.locate import locate
from loraxs_search.records.task import BaseModelRef


@pytest.fixture
def driver():
    """The driver of a study whose first trial is at step 20."""
    driver = ScriptedDriver(study("mine"))
    driver.begin()
    driver.train("00000", 20)
    return driver


@pytest.fixture
def adapter(make_adapter, tiny_base, tmp_path):
    """An adapter with a head."""
    query = ("bert.encoder.layer.0.attention.self.query",)
    return make_adapter(tmp_path / "adapter", locate(BaseModelRef(str(tiny_base))), rank=2, target_modules=query)
