"""How far a study has come: its state, its events as they are recorded, and the document of a finished search."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from loraxs_search.log.events import SearchEnded, SearchStarted, ShownEvent
from loraxs_search.records import STORED_NAMES, Baseline, FrontTrial, SearchPlan, TrialRecord, TrialState, to_json
from loraxs_search.reports.leaderboard import LeaderboardRow, front, leaderboard, score_warnings, shown_baselines
from loraxs_search.studies import Journal, StudyFolder


@dataclass(frozen=True)
class Progress:
    """Counts of a study's trials by state, out of `num_trials`."""

    num_trials: int
    running: int
    complete: int
    pruned: int
    failed: int

    @property
    def ended(self) -> int:
        return self.complete + self.pruned + self.failed


def progress(records: Collection[TrialRecord], plan: SearchPlan) -> Progress:
    """Count `records` by state."""

    def count(state: TrialState) -> int:
        return sum(record.state is state for record in records)

    return Progress(
        num_trials=max(plan.trials, len(records)),
        running=count(TrialState.RUNNING),
        complete=count(TrialState.COMPLETE),
        pruned=count(TrialState.PRUNED),
        failed=count(TrialState.FAIL),
    )


def study_state(folder: StudyFolder) -> str:
    """Return `running`, `finished` or `interrupted`, by the lock that a driver on this machine holds while it lives."""
    if folder.is_running():
        return "running"
    return "finished" if folder.candidates() is not None else "interrupted"


def state_and_place(folder: StudyFolder) -> tuple[str, str]:
    """Return a study's state, and where its driver may be if not on this machine.

    A study that is copied to a storage may go on with a driver on another machine, of which this folder knows nothing.
    The storage is asked once: where a driver elsewhere holds it and has not said that it ended, the state is
    `elsewhere`. It may have been killed: only who waits for a sign of life knows, as `resume` does.

    Returns:
        The state, and the name of that machine; empty where it is this one or none.
    """
    state = study_state(folder)
    if state != "interrupted" or folder.info.storage is None:
        return state, ""
    from loraxs_search.studies import holder_elsewhere

    host = holder_elsewhere(folder.info.storage, folder.name)
    return ("elsewhere", host) if host else (state, "")


@dataclass(frozen=True)
class SearchDocument:
    """What `launch --json` prints.

    Args:
        wall_s: How long drivers have worked on it, all of them together.
        notice: Why the search ended before its budget, for people; empty when it did not.
    """

    __pydantic_config__ = STORED_NAMES

    study: str
    wall_s: float
    notice: str
    trials: list[LeaderboardRow]
    front: list[FrontTrial]
    baselines: list[Baseline]
    warnings: list[str]


def search_document(folder: StudyFolder, journal: Journal) -> SearchDocument:
    """Return a study's document as its folder has it now."""
    info, records = folder.info, journal.records.values()
    plan = info.search
    rows = leaderboard(records, info.task, folder.candidates() or (), plan.keep, plan.objectives)
    return SearchDocument(
        study=folder.name,
        wall_s=journal.spent_s,
        notice=journal.notice or "",
        trials=rows,
        front=list(front(records, folder.keep_rule)) if plan.objectives else [],
        baselines=shown_baselines(folder.baselines(), finished=True),
        warnings=score_warnings(rows, info.task),
    )


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
    in another process than the search. The events and their fields are in `loraxs_search.log.events`.

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
