"""Items of work, done one after the other by a host that answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraxs_search.errors import LoraxsError
from loraxs_search.search.driver.work_items import WorkItem


def do_all(items: Sequence[WorkItem], host: Any) -> None:
    """Do all items; what the host raises is its answer, as over Ray."""
    for item in items:
        try:
            ask = next(item)
            while True:
                try:
                    answer = ask(host)
                except LoraxsError as error:
                    ask = item.throw(error)
                else:
                    ask = item.send(answer)
        except StopIteration:
            pass
