from __future__ import annotations

from collections.abc import Callable

import pytest

from loraxs_search.packing import capacity


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how much memory is free."""
    return lambda num_bytes: monkeypatch.setattr(capacity, "free_bytes", lambda device: num_bytes)
