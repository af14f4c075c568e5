"""Following a study from its folder: the events of its search, as they are recorded, until nobody works on it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

from loraxs_search.records import SearchEndedEvent, SearchEvent, to_json
from loraxs_search.reports.progress import study_state
from loraxs_search.reports.search_document import search_document
from loraxs_search.studies import JournalEvents, StudyFolder

POLL_S = 0.5


class StudyEvents:
    """Reads the events of a study that were recorded since the last look."""

    def __init__(self, folder: StudyFolder) -> None:
        self._folder, self._journal = folder, JournalEvents(folder)
        self._quiet = False  # nobody held the study at the last look, and nothing was new

    def new(self) -> list[SearchEvent]:
        """Return what is new; `SearchEndedEvent` is the last of all.

        Nobody may hold a study for a moment, as before its driver begins. So it takes two looks to see that it ended,
        unless its candidates are there.

        Raises:
            StudyError: the study is damaged.
        """
        state = study_state(self._folder)  # first: what an ended driver wrote is there by now
        events: list[SearchEvent] = list(self._journal.new())
        if state == "running" or (state == "interrupted" and (events or not self._quiet)):
            self._quiet = state != "running"
            return events
        return [*events, ended(self._folder)]


def watch(study: str, *, poll_s: float = POLL_S, sleep: Callable[[float], None] = time.sleep) -> Iterator[SearchEvent]:
    """Yield the events of a study of this machine, from its first one on, and then those that follow as they happen.

    It ends with a `SearchEndedEvent`, once nobody works on the study. It reads the study's folder alone, so it may run
    in another process than the search. The events and their fields are in `loraxs_search.records`.

    Args:
        poll_s: Seconds between two looks.
        sleep: How to wait for that long.
    Raises:
        StudyError: there is no such study, or its journal is damaged.
    """
    events = StudyEvents(StudyFolder.open(study))
    while True:
        for event in events.new():
            yield event
            if isinstance(event, SearchEndedEvent):
                return
        sleep(poll_s)


def ended(folder: StudyFolder) -> SearchEndedEvent:
    """Return the last event of a study that nobody works on."""
    journal = folder.journal()
    if folder.candidates() is None:
        return SearchEndedEvent(study=folder.name, at=journal.last_at, state="interrupted")
    document = search_document(folder, journal)
    return SearchEndedEvent(
        study=folder.name,
        at=journal.last_at,
        state="finished",
        notice=document.notice,
        result=json.loads(to_json(document)),
    )
