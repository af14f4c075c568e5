"""Trial hosts: the frozen base shared by many trials.

The names load on first use: how many trials fit a device is known without PEFT.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraxs_search.packing._base import Host
    from loraxs_search.packing.packed_host import PackedHost
    from loraxs_search.packing.trial_host import TrialHost

__all__ = ["Host", "PackedHost", "TrialHost"]

_HOMES = {"Host": "_base", "PackedHost": "packed_host", "TrialHost": "trial_host"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
