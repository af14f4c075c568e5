"""How studies stand, from their folders alone: the list of all, and what `status` shows of one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from loraxs_search.errors import StudyError
from loraxs_search.log.events import Phase
from loraxs_search.mlflow_uri import redact
from loraxs_search.records import STORED_NAMES, Baseline, Command, FrontTrial, TrialState
from loraxs_search.reports.leaderboard import (
    PAUSED,
    LeaderboardRow,
    front,
    interrupted,
    leaderboard,
    score_warnings,
    shown_baselines,
)
from loraxs_search.reports.progress import Progress, StudyEvents, progress, state_and_place, study_state
from loraxs_search.reports.search_state import SearchState
from loraxs_search.steering import open_commands, steered, whole_plan
from loraxs_search.steering.state import planned
from loraxs_search.studies import StudyFolder, broken_studies, list_studies, studies_root


@dataclass(frozen=True)
class _StudySummary:
    """A line of the list.

    Args:
        trials: How many have ended, of how many.
        num_bytes: What its folder takes; 0 where that was not asked for.
        is_waiting: Whether records wait for MLflow; False where that was not asked for.
        problem: Why the study cannot be read; then nothing else is known.
    """

    study: str
    task: str
    state: str
    trials: str
    created: str
    path: Path
    num_bytes: int = 0
    is_waiting: bool = False
    problem: str = ""

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """Return what every list shows of it."""
        return self.study, self.task, self.state, self.trials, self.created


def study_summaries(*, sizes: bool = False) -> Iterator[_StudySummary]:
    """Yield a line for each study, newest first; one that cannot be read hides no other.

    Folders without `study.json` come last: what a broken fetch, or the removal of a study in use, has left.

    Args:
        sizes: Look at every file of each, too.
    """
    for name in [*list_studies(), *broken_studies()]:
        path = studies_root() / name
        more: dict[str, Any] = {"path": path}
        if sizes:
            from loraxs_search.tracking._followed import has_waiting

            more |= {"num_bytes": sum(_sizes(path).values()), "is_waiting": has_waiting(path)}
        if not StudyFolder.exists(name):
            problem = f"{path} has no study.json; remove it with `loraxs-search studies rm {name} --force`"
            yield _StudySummary(name, "-", "incomplete", "-", "-", problem=problem, **more)
            continue
        try:
            folder = StudyFolder.open(name)
            journal = folder.journal()
            counts = progress(journal.records.values(), whole_plan(folder, journal))
            state = study_state(folder)
        except StudyError as error:
            yield _StudySummary(name, "-", "unreadable", "-", "-", problem=error.message, **more)
            continue
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.info.created_at))
        yield _StudySummary(
            name, folder.info.task.registered_name, state, f"{counts.ended}/{counts.num_trials}", created, **more
        )


def study_facts(name: str) -> dict[str, Any]:
    """Return where a study lies, what it takes, and what it is of.

    Raises:
        StudyError: there is no such study, or it is damaged.
    """
    folder = StudyFolder.open(name)
    info = folder.info
    return {
        "study": name,
        "path": str(folder.path),
        "state": study_state(folder),
        "created": info.created_at,
        "task": info.task.registered_name,
        "base": info.base_model.id,
        "space": info.space_source,
        "MLflow": redact(info.tracking_uri),
        "storage": info.storage,
        "bytes": _sizes(folder.path),
    }


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of a study's files, by the folder they are in, `records` for those in none."""
    sizes = {"records": 0}
    for path in folder.rglob("*"):
        if path.is_file():
            part = path.relative_to(folder).parts
            name = part[0] if len(part) > 1 else "records"
            sizes[name] = sizes.get(name, 0) + path.lstat().st_size
    return sizes


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

    __pydantic_config__ = STORED_NAMES

    study: str
    state: str
    progress: Progress
    trials: list[LeaderboardRow]
    front: list[FrontTrial]
    baselines: list[Baseline]
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
def status(study: None = None) -> list[_StudySummary]: ...
def status(study: str | None = None) -> StudyStatus | list[_StudySummary]:
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
        baselines=shown_baselines(folder.baselines(), finished=candidates is not None),
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
