"""Entries that are registered from outside the package, beside its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import toy_ia3
from support.in_process import InProcess
from support.plugins import write_distribution

from loraxs_search.methods import METHODS


@pytest.fixture
def toy_method(monkeypatch):
    """The toy method, in this process."""
    monkeypatch.setitem(METHODS._entries, toy_ia3.ToyIA3.name, toy_ia3.ToyIA3)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder on the path of every process to come, where the toy method is installed."""
    folder, entries = tmp_path / "site", {"loraxs_search.methods": {"toy-ia3": "ToyIA3"}}
    write_distribution(folder, "toy_ia3", Path(toy_ia3.__file__).read_text(), entries)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    return folder


@pytest.fixture
def shell(outside, warm_home, tmp_path):
    """The command line; a search has a process of its own, which sees what is installed there."""
    return InProcess(tmp_path / "home", tmp_path)
