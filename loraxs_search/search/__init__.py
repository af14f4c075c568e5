"""The search: Ray Tune schedules, Optuna samples, hosts train, one ledger records.

The names load on first use: a process that trains needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraxs_search.search.driver.launch import launch, launch_together, resume
    from loraxs_search.search.driver.result import SearchResult
    from loraxs_search.search.ledger import SearchView, SilentView

__all__ = ["SearchResult", "SearchView", "SilentView", "launch", "launch_together", "resume"]

_HOMES = {"SearchResult": "driver.result", "SearchView": "ledger", "SilentView": "ledger"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'driver.launch')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
