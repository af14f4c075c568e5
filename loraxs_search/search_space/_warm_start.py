"""`warm_start:`: the studies whose best params a search begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loraxs_search.search_space._document import Document
from loraxs_search.search_space._faults import asking, location_of, shown

MAX_STUDIES = 3
_KEY = "warm_start"


@dataclass(frozen=True)
class EarlierStudies:
    """The studies that a space names.

    Args:
        names: Of the studies; None leaves the choice to the search: `auto`.
        locations: Where each name is written, for faults that are found later.
    """

    names: tuple[str, ...] | None = None
    locations: tuple[str, ...] = ()


def read_warm_start(document: Document, given: object) -> EarlierStudies | None:
    """Read the section; faults go to the document."""
    if given == "auto":
        return EarlierStudies()
    if not isinstance(given, list) or not given:
        remedy = f"; write [{given}]" if isinstance(given, str) else ""
        law = "must be a list of studies, or auto, which finds them"
        document.faults.add((_KEY,), f"{asking(law, given, ['auto'])}, but got {shown(given)}{remedy}.")
        return None
    if len(given) > MAX_STUDIES:
        law = f"must name at most {MAX_STUDIES} studies: the best of each come first"
        document.faults.add((_KEY,), f"{law}, but got {len(given)}.")
    for index, name in enumerate(given):
        _check_name(document, given, index, name)
    places = [location_of(document.locations, (_KEY, index)).text for index in range(len(given))]
    return EarlierStudies(tuple(map(str, given)), tuple(places))


def _check_name(document: Document, given: list[Any], index: int, name: object) -> None:
    if not isinstance(name, str) or not name:
        remedy = "; quote it to mean the text" if isinstance(name, bool | int | float) else ""
        document.faults.add((_KEY, index), f"must be a study's name, but got {shown(name)}{remedy}.")
    elif name in given[:index]:
        document.faults.add((_KEY, index), f"must name each study once, but {name} came before.")
