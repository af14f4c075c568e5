"""What a decision needs that a search has not measured: a champion's new scores, a finalist's answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from loraxs_search import registry
from loraxs_search.errors import LoraxsError
from loraxs_search.records import Answers, Candidate, Task
from loraxs_search.studies import StudyFolder, list_studies

if TYPE_CHECKING:
    from loraxs_search.registry.scored_rows import ScoredRows


def scored_anew(champion: registry.RegisteredAdapter, task: Task, uri: str) -> registry.Rescored:
    """Return what a registered adapter scores on the rows that a task has now."""
    from loraxs_search.trial import score_folder

    scores = score_folder(registry.pull(f"{champion.task}:{champion.version}", uri=uri), task)
    rows = _rows(scores.answers)
    return registry.Rescored(scores.metrics, scores.data_fingerprint, rows, scores.test_fingerprint)


def _rows(said: Answers) -> ScoredRows:
    from loraxs_search.registry.scored_rows import ScoredRows  # numpy, which pulling does without

    return ScoredRows.of(said.predictions, said.labels, said.losses, said.counts, said.correct)


def other_finalists(folder: StudyFolder, candidates: list[Candidate]) -> list[str]:
    """Return the keys of finalists of this machine's other studies that have answered the same test rows.

    A study that was never decided on has looked at them all the same, and so has one that continues or was interrupted.
    """
    own = {candidate.test_fingerprint for candidate in candidates if candidate.test_metrics} - {""}
    others = (name for name in list_studies() if name != folder.name)
    tested = (
        c for name in others for c in _tested_on(name, folder.info.task.registered_name) if c.test_fingerprint in own
    )
    return list(dict.fromkeys(map(registry.key, tested)))


def _tested_on(name: str, task: str) -> list[Candidate]:
    """Return the finalists of a study of the task, ended or not; none if it cannot be read."""
    try:
        study = StudyFolder.open(name)
        confirmed = study.confirmations()
        kept = (confirmed.candidate(trial_id) for trial_id in confirmed.finalists())
        scored = [c for c in (*(study.candidates() or ()), *kept) if c is not None and c.test_metrics]
        before = study.earlier_finalists()
    except (LoraxsError, ValueError):
        return []
    earlier = [replace(c, trial_id=trial_id) for c in scored for trial_id in (*c.earlier_finalists, *before)]
    return [*earlier, *scored] if study.info.task.registered_name == task else []
