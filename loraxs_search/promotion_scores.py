"""What a decision needs that a search has not measured: a champion's new scores, a finalist's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraxs_search.records import Answers, Candidate, Task
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import Registry
from loraxs_search.registry.versions import RegisteredAdapter, Rescored
from loraxs_search.studies import StudyFolder
from loraxs_search.studies.test_set_uses import uses

if TYPE_CHECKING:
    from loraxs_search.registry.evidence import ScoredRows


def scored_anew(champion: RegisteredAdapter, task: Task, uri: str) -> Rescored:
    """Return what a registered adapter scores on the rows that a task has now."""
    from loraxs_search.trial import score_folder

    scores = score_folder(pull(f"{champion.task}:{champion.version}", uri=uri), task)
    rows = _rows(scores.answers)
    return Rescored(scores.metrics, scores.data_fingerprint, rows, scores.test_fingerprint)


def _rows(said: Answers) -> ScoredRows:
    from loraxs_search.registry.evidence import ScoredRows  # numpy, which pulling does without

    return ScoredRows.of(said.predictions, said.labels, said.losses, said.counts, said.correct)


def other_finalists(folder: StudyFolder, candidates: list[Candidate], uri: str) -> list[str]:
    """Return the keys of the task's finalists that have answered the same test rows, as home and registry know them.

    A study that was never decided on has used them all the same, and so has one that was removed.
    """
    task, used = folder.info.task.registered_name, {c.test_fingerprint for c in candidates if c.test_metrics} - {""}
    reader = Registry(uri)
    return [key for rows in sorted(used) for key in (*uses(task, rows), *reader.uses(task, rows))]
