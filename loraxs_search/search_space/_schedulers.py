"""What the `search:` section takes of schedulers: their names, and the keys that each declares."""

from __future__ import annotations

import contextlib
from typing import Any

from loraxs_search.errors import UsageError
from loraxs_search.schedulers import SCHEDULERS, Scheduler
from loraxs_search.search_space._faults import one_of


def check_scheduler(name: str) -> str:
    """Refuse a name that no scheduler has, or whose scheduler cannot be imported."""
    if name not in SCHEDULERS.names():
        raise ValueError(f"must be one of: {one_of(SCHEDULERS.names(), name)}")
    try:
        SCHEDULERS.get(name)
    except UsageError as error:
        raise ValueError(f"must be a scheduler that can be imported ({error.message})") from error
    return name


def scheduler_keys() -> dict[str, Any]:
    """Return type and default of every key that a scheduler takes; of two that take the same, the first one's.

    A space may hold keys of a scheduler that it does not use: `--set search.scheduler=none` is enough to do without.
    """
    return {
        key: (law.annotation, law.default) for entry in reversed(_importable()) for key, law in entry.parameters.items()
    }


def taken_keys(name: str) -> list[str]:
    """Return the keys that the scheduler of this name takes."""
    return list(SCHEDULERS.get(name).parameters)


def _importable() -> list[type[Scheduler]]:
    entries = list[type[Scheduler]]()
    for name in SCHEDULERS.names():
        with contextlib.suppress(UsageError):  # refused where a space names it
            entries.append(SCHEDULERS.get(name))
    return entries
