"""Which `FactorStore` new adapters take their factors from; a process that hosts many trials puts its own here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from loraxs_search.factors import FactorStore

_stack: list[FactorStore] = [FactorStore()]


def current_factor_store() -> FactorStore:
    """Return the store in use: the innermost `use_factor_store`, else the one under the home folder."""
    return _stack[-1]


@contextlib.contextmanager
def use_factor_store(store: FactorStore) -> Iterator[FactorStore]:
    """Take factors from `store` while the block runs, in every thread of this process."""
    _stack.append(store)
    try:
        yield store
    finally:
        _stack.remove(store)
