"""Names of registered entries in a space: whether something has the name, and can be imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loraxs_search.errors import UsageError
from loraxs_search.plugins import EntryPoints
from loraxs_search.search_space._faults import must_be


def known_entry(registry: EntryPoints[Any], noun: str) -> Callable[[Any], str]:
    """Return a validator that refuses a name that no entry has, or whose entry cannot be imported.

    Args:
        noun: What an entry is, with its article.
    """

    def check(name: Any) -> str:
        if name not in registry.names():
            raise ValueError(must_be(name, registry.names()))
        try:
            registry.get(name)
        except UsageError as error:
            raise ValueError(f"must be {noun} that can be imported ({error.message})") from error
        return str(name)

    return check
