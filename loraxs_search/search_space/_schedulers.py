"""What the `search:` section takes of schedulers: the keys that each declares."""

from __future__ import annotations

from typing import Any

from loraxs_search.schedulers import SCHEDULERS


def scheduler_keys() -> dict[str, Any]:
    """Return type and default of every key that a scheduler takes; of two that take the same, the first one's.

    A space may hold keys of a scheduler that it does not use: `--set search.scheduler=none` is enough to do without.
    """
    entries = reversed(SCHEDULERS.importable().values())
    return {key: (law.annotation, law.default) for entry in entries for key, law in entry.parameters.items()}


def taken_keys(name: str) -> list[str]:
    """Return the keys that the scheduler of this name takes."""
    return list(SCHEDULERS.get(name).parameters)
