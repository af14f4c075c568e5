from __future__ import annotations

import pytest

from loraxs_search.packing import capacity


@pytest.fixture
def free(monkeypatch):
    """Sets how much memory is free."""
    return lambda num_bytes: monkeypatch.setattr(capacity, "free_bytes", lambda device: num_bytes)
