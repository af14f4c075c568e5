"""Entries that are registered from outside the package, beside its own."""

from __future__ import annotations

import pytest
from support import toy_ia3

from loraxs_search.methods import METHODS


@pytest.fixture
def toy_method(monkeypatch):
    """The toy method, in this process."""
    monkeypatch.setitem(METHODS._entries, toy_ia3.ToyIA3.name, toy_ia3.ToyIA3)
