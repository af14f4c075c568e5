"""What is recorded of a search that has ended: its result, its adapters, its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loraxs_search.records import Candidate, Scalar, TrialRecord, TrialState
from loraxs_search.registry import trial_of
from loraxs_search.reports.leaderboard import front
from loraxs_search.search.driver.commander import answer_waiting
from loraxs_search.search.driver.kept_report import keep_report
from loraxs_search.search.driver.result import SearchResult
from loraxs_search.studies import Journal, StudyFolder, mirrored
from loraxs_search.tracking.tracker import Tracker


def close_finished(folder: StudyFolder) -> SearchResult:
    """Return the result of a search that had ended; MLflow and its copy get what is still missing there."""
    info = folder.info
    with (
        folder.lock(),
        mirrored(folder, lambda: None),
        Tracker(folder.name, folder.path, info.tracking_uri, info.task.registered_name, folder.keep_rule) as tracker,
    ):
        answer_waiting(folder, info.tracking_uri)
        result = record_finished(folder, tracker)
        tracker.drain()
        return result


def lacks_baseline(folder: StudyFolder) -> bool:
    """Whether a required baseline was not measured: resuming measures it, since nothing is promoted without it."""
    from loraxs_search.registry.baselines import unmeasured  # numpy

    info, has_alone = folder.info, folder.confirmations().alone_path.is_file()
    return bool(unmeasured(info.promotion, info.task, folder.baselines() or (), has_alone=has_alone))


def record_finished(folder: StudyFolder, tracker: Tracker) -> SearchResult:
    """Record what MLflow is told of a search that had ended, where its driver was killed before it could say so."""
    journal = folder.journal()
    result = result_of(folder, journal)
    if not is_recorded(journal, tracker):
        log_adapters(folder, journal, result.trials, result.candidates)
        journal.baselines_measured(folder.baselines() or ())
        journal.front_found(result.front)
    keep_report(folder, journal, tracker)
    if not is_recorded(journal, tracker):
        journal.search_finished("FINISHED", summary_of(result), at=journal.last_at)
    return result


def is_recorded(journal: Journal, tracker: Tracker) -> bool:
    """Whether the end of a search is recorded, in its log or by an older version beside it."""
    return tracker.was_finished if journal.is_finished is None else journal.is_finished


def result_of(folder: StudyFolder, journal: Journal) -> SearchResult:
    """Return how a search stands in its journal and its candidates."""
    return SearchResult(
        study=folder.name,
        trials=tuple(journal.records.values()),
        candidates=tuple(folder.candidates() or ()),
        wall_s=journal.spent_s,
        notice=journal.notice or "",
        front=tuple(front(journal.records.values(), folder.keep_rule)) if folder.info.search.objectives else (),
    )


def log_adapters(
    folder: StudyFolder, journal: Journal, trials: Sequence[TrialRecord], candidates: Sequence[Candidate]
) -> None:
    """Have MLflow keep the adapter of every completed trial that has one, and the finalist where that is a refit.

    The scores of those that are candidates go with them.
    """
    scores = {candidate.trial_id: _candidate_scores(candidate) for candidate in candidates}
    names = [record.trial_id for record in trials if record.state is TrialState.COMPLETE]
    names += [candidate.trial_id for candidate in candidates if candidate.test_metrics]
    for name in (name for name in dict.fromkeys(names) if folder.adapter_path(name).is_dir()):
        path = folder.adapter_path(name).relative_to(folder.path)
        journal.adapter_written(name, str(path), trial_of(name), scores.get(name))


def _candidate_scores(candidate: Candidate) -> dict[str, float]:
    splits = {"validation": candidate.validation_metrics, "test": candidate.test_metrics}
    return {f"{split}.{name}": value for split, metrics in splits.items() for name, value in metrics.items()}


def summary_of(result: SearchResult) -> Mapping[str, Scalar]:
    """Return what the run of a search says of its end."""
    states = [record.state.value for record in result.trials]
    counts: dict[str, Scalar] = {f"num_{state.lower()}": states.count(state) for state in set(states)}
    finalist = next((c.trial_id for c in result.candidates if c.test_metrics), "")
    return counts | {"wall_s": result.wall_s, "notice": result.notice, "finalist": finalist}
