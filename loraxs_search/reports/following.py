"""Following a study from its folder: the events of its search, as they are recorded, until nobody works on it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator

from loraxs_search.log import SearchEnded, SearchStarted, ShownEvent
from loraxs_search.records import to_json
from loraxs_search.reports.progress import study_state
from loraxs_search.reports.search_document import search_document
from loraxs_search.studies import StudyFolder

POLL_S = 0.5


class StudyEvents:
    """Reads the events of a study that were recorded since the last look."""

    def __init__(self, folder: StudyFolder) -> None:
        self._folder, self._log = folder, folder.log()
        self._quiet = False  # nobody held the study at the last look, and nothing was new
        self._began_at = self._steps_at = 0.0  # when its driver began to train, and was heard of last

    def new(self) -> list[ShownEvent]:
        """Return what is new; `SearchEnded` is the last of all.

        Nobody may hold a study for a moment, as before its driver begins. So it takes two looks to see that it ended,
        unless its candidates are there.

        Raises:
            StudyError: the study is damaged.
        """
        state = study_state(self._folder)  # first: what an ended driver wrote is there by now
        events: list[ShownEvent] = [event for event in self._log.new() if isinstance(event, ShownEvent)]
        events += self._steps(events) if state == "running" else []
        if state == "running" or (state == "interrupted" and (events or not self._quiet)):
            self._quiet = state != "running"
            return events
        return [*events, ended(self._folder)]

    def _steps(self, new: Iterable[ShownEvent]) -> list[ShownEvent]:
        """Return how far trials are where that is news; what an earlier driver said of them is not."""
        self._began_at = max([self._began_at, *(each.at for each in new if isinstance(each, SearchStarted))])
        steps = self._folder.read_steps()
        if steps is None or not self._began_at or steps.at <= max(self._began_at, self._steps_at):
            return []
        self._steps_at = steps.at
        return [steps]


def watch(study: str, *, poll_s: float = POLL_S, sleep: Callable[[float], None] = time.sleep) -> Iterator[ShownEvent]:
    """Yield the events of a study of this machine, from its first one on, and then those that follow as they happen.

    It ends with a `SearchEnded`, once nobody works on the study. It reads the study's folder alone, so it may run
    in another process than the search. The events and their fields are in `loraxs_search.log`.

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
            if isinstance(event, SearchEnded):
                return
        sleep(poll_s)


def ended(folder: StudyFolder) -> SearchEnded:
    """Return the last event of a study that nobody works on."""
    journal = folder.journal()
    if folder.candidates() is None:
        return SearchEnded(study=folder.name, at=journal.last_at, state="interrupted")
    document = search_document(folder, journal)
    return SearchEnded(
        study=folder.name,
        at=journal.last_at,
        state="finished",
        notice=document.notice,
        result=json.loads(to_json(document)),
    )
