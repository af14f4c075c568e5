"""What a search has found, as Python shows it, and what MLflow and the study's folder keep of its end.

Studies bring it over themselves; `sync` does it later for those that could not reach MLflow. It needs no Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from loraxs_search.errors import LoraxsError, StorageError, TrackingError, counted
from loraxs_search.log.events import AdapterWritten, BaselinesMeasured, ReportWritten, SearchFinished
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.codec import Scalar
from loraxs_search.records.search import Candidate
from loraxs_search.records.trial import TrialRecord, TrialState
from loraxs_search.registry.finalist import trial_of
from loraxs_search.reports.leaderboard import LeaderboardRow, leaderboard
from loraxs_search.studies.folder import StudyFolder, list_studies
from loraxs_search.studies.mirror import Mirror, is_behind, mirrored
from loraxs_search.studies.storage import Storage
from loraxs_search.tracking.tracker import Tracker


@dataclass(frozen=True, repr=False)
class SearchResult:
    """How a search ended.

    Args:
        trials: Every trial, in the order they were started.
        candidates: The best trials and their refits, best first by validation. Only the finalist has test scores.
        wall_s: How long drivers have worked on it, all of them together.
        notice: Why the search ended before its budget, as shown to users; empty when it did not.
    """

    study: str
    trials: tuple[TrialRecord, ...]
    candidates: tuple[Candidate, ...]
    wall_s: float
    notice: str = ""

    def leaderboard(self) -> list[LeaderboardRow]:
        """Return a row for each trial, best first, as `status` prints them.

        Raises:
            StudyError: the study is no longer on this machine.
        """
        info = StudyFolder.open(self.study).info
        return leaderboard(self.trials, info.task, self.candidates, info.search.checkpoint)

    def __repr__(self) -> str:
        complete = sum(record.state is TrialState.COMPLETE for record in self.trials)
        ended = f", {self.notice}" if self.notice else ""
        trials = f"{complete} of {counted(len(self.trials), 'trial')} complete"
        return f"<SearchResult {self.study}: {trials}, {self.wall_s:.0f} s{ended}>"


_logger = logging.getLogger(__name__)


def open_tracker(folder: StudyFolder, uri: str, mirror: Mirror | None) -> Tracker:
    """Return what carries a study's log to MLflow.

    Args:
        mirror: Of a study with a storage, as far as it is kept up meanwhile.
    Raises:
        StudyError, HomeError: as `Tracker`.
    """
    info, selection = folder.info, folder.checkpoint_selection
    is_ours = None if info.storage is None else lambda: mirror is not None and mirror.is_sure
    name, study_id = info.task.registered_name, info.study_id
    return Tracker(folder.name, folder.path, uri, name, selection, study_id=study_id, is_ours=is_ours)


def lacks_baseline(folder: StudyFolder) -> bool:
    """Whether a required baseline was not measured: resuming measures it, since nothing is promoted without it.

    A search that ended without candidates needs none.
    """
    from loraxs_search.registry.promotion import unmeasured  # numpy

    info, has_untouched = folder.info, folder.confirmed.base_rows_path.is_file()
    found = unmeasured(info.task, folder.baselines() or (), folder.baseline_answers(), has_untouched=has_untouched)
    return folder.candidates() != [] and info.promotion.require == "all" and found is not None and found[1]


def record_end(folder: StudyFolder, journal: StudyLog) -> SearchResult:
    """Record once what MLflow receives at the end of a search, and return the result.

    MLflow receives the adapter of every completed trial that has one, and the finalist's if that is a refit, with the
    candidates' scores; the baselines; and the report, which the study's folder keeps, too. A report that cannot be made
    stops nothing: `loraxs-search report` makes it again, and says what is wrong.
    """
    candidates = tuple(folder.candidates() or ())
    result = SearchResult(
        folder.name, tuple(journal.records.values()), candidates, journal.spent_s, journal.notice or ""
    )
    is_finished = journal.is_finished
    if not is_finished:
        names = [record.trial_id for record in result.trials if record.state is TrialState.COMPLETE]
        names += [candidate.trial_id for candidate in candidates if candidate.test_metrics]
        known = {candidate.trial_id: candidate for candidate in candidates}
        for name in (name for name in dict.fromkeys(names) if folder.adapter_path(name).is_dir()):
            path, own = folder.adapter_path(name).relative_to(folder.path), known.get(name)
            splits = {"validation": own.validation_metrics, "test": own.test_metrics} if own else {}
            scores = {f"{split}.{n}": value for split, metrics in splits.items() for n, value in metrics.items()}
            journal.append(AdapterWritten(trial_id=name, folder=str(path), run_of=trial_of(name), scores=scores))
        journal.append(BaselinesMeasured(baselines=folder.baselines() or ()))
    # The trials have ended by now, and the tracker carries their records over meanwhile.
    from loraxs_search.reports.html.page import REPORT_FILE, write_report

    # On another machine the report may be only in MLflow.
    if not (journal.has_report and (folder.path / REPORT_FILE).is_file()):
        try:
            journal.append(ReportWritten(path=write_report(folder).name))
        except Exception as error:  # noqa: BLE001  # whatever is wrong with a picture, the search has found what it found
            name = folder.name
            _logger.warning("no report was written (%s); try `loraxs-search report %s`", error, name)
    if not is_finished:
        states = [record.state.value for record in result.trials]
        summary: dict[str, Scalar] = {f"num_{state.lower()}": states.count(state) for state in set(states)}
        finalist = next((candidate.trial_id for candidate in candidates if candidate.test_metrics), "")
        summary |= {"wall_s": result.wall_s, "notice": result.notice, "finalist": finalist}
        journal.append(SearchFinished(at=journal.last_at, state="FINISHED", summary=summary))
    return result


_AWAY_AFTER_S = 10.0


@dataclass(frozen=True)
class Synced:
    """What became of a study's records.

    Args:
        state: `complete` when MLflow has them all now; `running` when a search is at work on it and brings them
            itself; `elsewhere` when a driver on another machine has continued with the study, and what waits here is
            old; `waiting` when MLflow is away, or the storage that says whether another machine has continued;
            `unreadable` when the study cannot be read, or its folder not written.
        problem: Why they wait, or what is damaged.
    """

    study: str
    state: Literal["complete", "running", "elsewhere", "waiting", "unreadable"]
    problem: str = ""


def sync(study: str | None = None) -> Iterator[Synced]:
    """Bring over what waits of one study, or of all, newest first; yield each as it is done.

    Raises:
        StudyError: there is no such study.
    """
    for name in list_studies() if study is None else [study]:
        try:
            yield _sync(StudyFolder.open(name))
        except LoraxsError as error:  # the others are brought over all the same
            if study is not None:
                raise
            yield Synced(name, "unreadable", error.message)


def _sync(folder: StudyFolder) -> Synced:
    if folder.is_running():
        return Synced(folder.name, "running")
    info = folder.info
    try:
        uri = folder.store_uri()
        if info.storage is not None and is_behind(folder.path, Storage(info.storage), folder.name):
            return Synced(folder.name, "elsewhere", "another machine has continued with it: sync there")
    except StorageError as error:
        return Synced(folder.name, "waiting", error.message)
    except TrackingError as error:
        return Synced(folder.name, "waiting", f"{error.message.removesuffix('.')}: {error.hint}")
    with folder.lock():
        tracker = open_tracker(folder, uri, mirror=None)
        try:
            if folder.candidates() is not None and not folder.journal().is_finished:
                with mirrored(folder, lambda: None):  # else another machine would record it otherwise
                    record_end(folder, folder.journal())
            problem = tracker.drain(_AWAY_AFTER_S)
        except StorageError as error:
            problem = error.message
        finally:
            tracker.close(0.0)
    return Synced(folder.name, "waiting" if problem else "complete", problem)
