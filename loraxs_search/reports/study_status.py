"""How studies stand, from their folders: the list of all, what `status` shows of one, its events as they happen."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal, overload

from loraxs_search.errors import StudyError
from loraxs_search.log.events import Phase, SearchEnded, SearchStarted, ShownEvent
from loraxs_search.log.study_log import read_events
from loraxs_search.records.search import Baseline, Command, OperatingPoint, SearchPlan
from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.reports.leaderboard import LeaderboardRow, leaderboard, score_warnings, shown_baselines
from loraxs_search.reports.search_state import SearchState
from loraxs_search.steering import open_commands, steered
from loraxs_search.studies.folder import StudyFolder, broken_studies, list_studies, studies_root


@dataclass(frozen=True)
class Progress:
    """Counts of a study's trials by state, out of `num_trials`."""

    num_trials: int
    running: int
    complete: int
    pruned: int
    failed: int

    @classmethod
    def of(cls, records: Collection[TrialRecord], plan: SearchPlan) -> Progress:
        """Count `records` by state."""
        counts = Counter(record.state for record in records)
        states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        return cls(max(plan.trials, len(records)), *(counts[state] for state in states))

    @property
    def ended(self) -> int:
        return self.complete + self.pruned + self.failed


_POLL_S = 0.5


def watch(study: str, *, poll_s: float = _POLL_S, sleep: Callable[[float], None] = time.sleep) -> Iterator[ShownEvent]:
    """Yield the events of a study of this machine, from its first one on, and then those that follow as they happen.

    It ends with a `SearchEnded`, once nobody works on the study: its candidates are there, or nobody has held it in two
    looks, as for a moment before its driver begins. It reads only the study's folder, so it may run in another process
    than the search. The events and their fields are in `loraxs_search.log.events`.

    Args:
        poll_s: Seconds between two looks.
        sleep: How to wait for that long.
    Raises:
        StudyError: there is no such study, or its journal is damaged.
    """
    folder, offset, is_quiet = StudyFolder.open(study), 0, False
    began_at = steps_at = 0.0  # when its driver began to train, and was heard of last
    while True:
        state, is_new = folder.state(), False  # first: what an ended driver wrote is there by now
        for event, end in read_events(folder.journal_path, folder.name, offset):
            offset = end
            if isinstance(event, ShownEvent):
                is_new = True
                began_at = max(began_at, event.at) if isinstance(event, SearchStarted) else began_at
                yield event
        steps = folder.steps.read() if state == "running" and began_at else None
        if steps is not None and steps.at > max(began_at, steps_at):  # not what an earlier driver said
            steps_at = steps.at
            yield steps
        if state == "finished" or (state == "interrupted" and is_quiet and not is_new):
            break
        is_quiet = state != "running"
        sleep(poll_s)
    journal, is_finished = folder.journal(), folder.candidates() is not None
    notice = (journal.notice or "") if is_finished else ""
    how: Literal["finished", "interrupted"] = "finished" if is_finished else "interrupted"
    yield SearchEnded(study=folder.name, at=journal.last_at, state=how, notice=notice)


@dataclass(frozen=True)
class _StudySummary:
    """A line of the list.

    Args:
        trials: How many have ended, of how many.
        problem: Why the study cannot be read; then nothing else is known.
    """

    study: str
    task: str
    state: str
    trials: str
    created: str
    problem: str = ""


def study_summaries() -> list[_StudySummary]:
    """Return a line for each study, newest first; an unreadable study does not hide the others.

    Folders without `study.json` come last: what a broken fetch, or the removal of a study in use, has left.
    """
    lines = []
    for name in list_studies():
        try:
            folder = StudyFolder.open(name)
            journal, info = folder.journal(), folder.info
            counts = Progress.of(journal.records.values(), steered(folder, journal).whole_plan)
            created = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.created_at))
            trials = f"{counts.ended}/{counts.num_trials}"
            lines.append(_StudySummary(name, info.task.registered_name, folder.state(), trials, created))
        except StudyError as error:
            lines.append(_StudySummary(name, "-", "unreadable", "-", "-", error.message))
    for name in broken_studies():
        remedy = f"remove it with `loraxs-search studies rm {name} --force`"
        problem = f"{studies_root() / name} has no study.json; {remedy}"
        lines.append(_StudySummary(name, "-", "incomplete", "-", "-", problem))
    return lines


@dataclass(frozen=True)
class StudyStatus:
    """What `status STUDY --json` prints, and `launch --json`.

    Args:
        state: `running`, `finished`, `interrupted` or `elsewhere`.
        trials: Best first.
        finishing: Why there are no new trials, while some still train; empty otherwise.
        commands: Those that no search has answered yet.
        warnings: What people should know of the scores.
        wall_s: How long drivers have worked on it, all of them together.
        notice: Why the search ended before its budget, as shown to users; empty when it did not.
        place: The machine whose driver has the study, or was killed there; empty where that is this one.
        phase: What a running search does beside training trials, and how far it is; None while they train.
        operating_points: The finalist's.
    """

    study: str
    state: str
    progress: Progress
    trials: list[LeaderboardRow]
    baselines: list[Baseline]
    finishing: str
    commands: list[Command]
    warnings: list[str]
    wall_s: float
    notice: str = ""
    place: str = ""
    phase: Phase | None = None
    operating_points: tuple[OperatingPoint, ...] = ()


@overload
def status(study: str) -> StudyStatus: ...
@overload
def status(study: None = None) -> list[_StudySummary]: ...
def status(study: str | None = None) -> StudyStatus | list[_StudySummary]:
    """Return how a study stands, also while it runs; without a name a summary of each study, newest first.

    Raises:
        StudyError: there is no such study, or it is damaged.
    """
    return study_summaries() if study is None else study_status(StudyFolder.open(study))


def study_status(folder: StudyFolder) -> StudyStatus:
    """Return how a study stands."""
    state, place = folder.state(), ""
    if state == "interrupted" and folder.info.storage is not None:
        # Copied to a storage, it may continue with a driver on another machine, and this folder knows nothing. Where a
        # driver elsewhere holds it there and has not said that it ended, it may have been killed, too: only who waits
        # for a sign of life knows, as `resume` does.
        from loraxs_search.studies.lease import Lease

        place = Lease.holder_elsewhere(folder.info.storage, folder.name)
        state = "elsewhere" if place else state
    study, info, candidates = steered(folder), folder.info, folder.candidates()
    records = study.journal.records
    rows = leaderboard(records.values(), info.task, candidates or (), info.search.checkpoint)
    search = SearchState()
    if state == "running":
        for event, _ in read_events(folder.journal_path, folder.name):
            if isinstance(event, ShownEvent):
                search.happened(event)
        steps = folder.steps.read()
        if steps is not None and search.facts is not None and steps.at > search.facts.at:  # not an earlier driver's
            search.happened(steps)
    for number, row in enumerate(rows):  # steps as live views show them; what is interrupted waits for `resume`
        if row.state is TrialState.RUNNING:
            step = max(row.step or 0, search.steps.get(row.trial_id, 0))
            rows[number] = replace(row, step=step, state="INTERRUPTED" if state == "interrupted" else row.state)
    return StudyStatus(
        study=folder.name,
        state=state,
        progress=Progress.of(records.values(), study.whole_plan),
        trials=rows,
        baselines=shown_baselines(folder.baselines(), finished=candidates is not None),
        finishing="" if study.journal.notice is not None else study.state.finishing or "",
        commands=open_commands(study),
        warnings=score_warnings(rows, info.task),
        wall_s=study.journal.spent_s,
        notice=study.journal.notice or "",
        place=place,
        phase=search.phase,
        operating_points=next((each.operating_points for each in candidates or () if each.test_metrics), ()),
    )
