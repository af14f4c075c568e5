"""How a study stands: what `status` shows of it, from its folder alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import overload

from loraxs_search.log import Phase
from loraxs_search.records import Command, FrontTrial, TrialState, Yardstick
from loraxs_search.reports.following import StudyEvents
from loraxs_search.reports.front import front
from loraxs_search.reports.leaderboard import PAUSED, LeaderboardRow, interrupted, leaderboard
from loraxs_search.reports.progress import Progress, progress, state_and_place
from loraxs_search.reports.score_warnings import score_warnings
from loraxs_search.reports.search_state import SearchState
from loraxs_search.reports.studies import StudySummary, study_summaries
from loraxs_search.reports.yardsticks import shown_yardsticks
from loraxs_search.steering import open_commands, steered
from loraxs_search.steering.plan import planned
from loraxs_search.studies import StudyFolder


@dataclass(frozen=True)
class StudyStatus:
    """What `status STUDY --json` prints.

    Args:
        state: `running`, `finished`, `interrupted` or `elsewhere`.
        trials: Best first.
        front: As `SearchResult` has it.
        paused: Trials that people have paused.
        finishing: Why there are no new trials, while some still train; empty otherwise.
        commands: Those that no search has answered yet.
        warnings: What people should know of the scores.
        is_paused: Whether new trials wait too.
        place: The machine whose driver has the study, or was killed there; empty where that is this one.
        phase: What a running search does beside training trials, and how far it is; None while they train.
    """

    study: str
    state: str
    progress: Progress
    trials: list[LeaderboardRow]
    front: list[FrontTrial]
    yardsticks: list[Yardstick]
    paused: list[str]
    finishing: str
    commands: list[Command]
    warnings: list[str]
    is_paused: bool = False
    place: str = ""
    phase: Phase | None = None


@overload
def status(study: str) -> StudyStatus: ...
@overload
def status(study: None = None) -> list[StudySummary]: ...
def status(study: str | None = None) -> StudyStatus | list[StudySummary]:
    """Return how a study stands, also while it runs; without a name a summary of each study, newest first.

    Raises:
        StudyError: there is no such study, or it is damaged.
    """
    return list(study_summaries()) if study is None else study_status(StudyFolder.open(study))


def study_status(folder: StudyFolder) -> StudyStatus:
    """Return how a study stands."""
    state, place = state_and_place(folder)
    study, info, candidates = steered(folder, folder.journal()), folder.info, folder.candidates()
    records = study.records
    rows = leaderboard(records.values(), info.task, candidates or (), info.search.keep, info.search.objectives)
    rows, search = interrupted(rows) if state == "interrupted" else rows, SearchState()
    if state == "running":
        for event in StudyEvents(folder).new():
            search.happened(event)
        rows = [_as_drawn(row, search) for row in rows]
    return StudyStatus(
        study=folder.name,
        state=state,
        progress=progress(records.values(), planned(info.search, study.state, records)),
        trials=rows,
        front=list(front(records.values(), folder.keep_rule)) if info.search.objectives else [],
        yardsticks=shown_yardsticks(folder.yardsticks(), finished=candidates is not None),
        paused=study.paused,
        finishing="" if study.trials_have_ended else study.state.finishing or "",
        commands=open_commands(study),
        warnings=score_warnings(rows, info.task),
        is_paused=study.state.is_paused,
        place=place,
        phase=search.phase,
    )


def _as_drawn(row: LeaderboardRow, search: SearchState) -> LeaderboardRow:
    """Return the row of a trial of a running search with the step and the state that live views show."""
    trial = search.trials.get(row.trial_id)
    if trial is None or row.state is not TrialState.RUNNING:
        return row
    state = PAUSED if row.trial_id in search.paused else row.state
    return replace(row, state=state, step=max(row.step, trial.current_step))
