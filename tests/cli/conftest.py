"""The command line in this process, for what needs no search."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.searched_studies import ScriptedDriver
from support.studies import study

from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.locate import locate
from loraxs_search.records.task import BaseModelRef, Task, TaskModel


@pytest.fixture
def ask(say, searched, monkeypatch):
    """Run a command line in this process, about the shared search."""
    monkeypatch.setenv("LORAXS_HOME", str(searched.shell.home))
    monkeypatch.chdir(searched.shell.folder)
    return say


@pytest.fixture
def rows_folder(tmp_path, monkeypatch, in_warm_home):
    """An empty folder for a user's rows, which a test is in; the base is at hand.

    `check --data` draws the rows of a standard error few times: a hundred F1 scores take longer than all else.
    """
    monkeypatch.setattr("loraxs_search.tasks.report._RESAMPLES", 2)
    (tmp_path / "rows").mkdir()
    monkeypatch.chdir(tmp_path / "rows")
    return tmp_path / "rows"


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


@pytest.fixture
def make_headless(make_adapter, tmp_path):
    """Make an adapter of a decoder, for a task without a head."""
    from support.toy_language import save_base

    save_base(tmp_path / "base")
    base = locate(BaseModelRef(str(tmp_path / "base")))
    modules = tuple(module.name for module in linear_modules(base, TaskModel("AutoModelForCausalLM")))

    def make(task: Task) -> Path:
        return make_adapter(tmp_path / "decoder", base, task=task, seed=3, rank=4, target_modules=modules)

    return make


@pytest.fixture
def writer(make_headless):
    """An adapter that writes, and reads two columns."""
    from support.toy_language import writing

    return make_headless(writing(prompt="{first} say {second}"))
