"""A study's yardsticks as people may see them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from loraxs_search.records import Yardstick


def shown_yardsticks(yardsticks: Iterable[Yardstick] | None, *, finished: bool) -> list[Yardstick]:
    """Return yardsticks without their test metrics until the search has chosen: nobody is to choose by these.

    Args:
        yardsticks: None while they are not known.
        finished: Whether the search has ended.
    """
    return [yardstick if finished else replace(yardstick, test_metrics={}) for yardstick in yardsticks or ()]
