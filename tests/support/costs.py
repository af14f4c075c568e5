"""What an operation costs with few and with many before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

ItemT = TypeVar("ItemT")


def costs(do: Callable[[Sequence[ItemT]], object], items: Sequence[ItemT]) -> tuple[float, float]:
    """Do all items, and return the CPU seconds of the first fifth and of the last: so the machine's speed cancels out.

    A cost that grows with each item makes the last nine times the first.
    """
    fifth = len(items) // 5
    seconds = list[float]()
    for part in (items[:fifth], items[fifth:-fifth], items[-fifth:]):
        began = time.process_time()
        do(part)
        seconds.append(time.process_time() - began)
    return seconds[0], seconds[2]
