"""What studies there are on this machine: the list that `status` and `studies ls` show."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraxs_search.errors import StudyError
from loraxs_search.mlflow_uri import redact
from loraxs_search.reports.progress import progress, study_state
from loraxs_search.steering import whole_plan
from loraxs_search.studies import StudyFolder, broken_studies, list_studies, studies_root


@dataclass(frozen=True)
class StudySummary:
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


def study_summaries(*, sizes: bool = False) -> Iterator[StudySummary]:
    """Yield a line for each study, newest first; one that cannot be read hides no other.

    Folders without `study.json` come last: what a broken fetch, or the removal of a study in use, has left.

    Args:
        sizes: Look at every file of each, too.
    """
    for name in [*list_studies(), *broken_studies()]:
        path = studies_root() / name
        more: dict[str, Any] = {"path": path}
        if sizes:
            more |= {"num_bytes": sum(_sizes(path).values()), "is_waiting": _has_waiting(path)}
        if not StudyFolder.exists(name):
            problem = f"{path} has no study.json; remove it with `loraxs-search studies rm {name} --force`"
            yield StudySummary(name, "-", "incomplete", "-", "-", problem=problem, **more)
            continue
        try:
            folder = StudyFolder.open(name)
            journal = folder.journal()
            counts = progress(journal.records.values(), whole_plan(folder, journal))
            state = study_state(folder)
        except StudyError as error:
            yield StudySummary(name, "-", "unreadable", "-", "-", problem=error.message, **more)
            continue
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.info.created_at))
        yield StudySummary(name, folder.info.task.name, state, f"{counts.ended}/{counts.num_trials}", created, **more)


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
        "task": info.task.name,
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


def _has_waiting(path: Path) -> bool:
    from loraxs_search.tracking import has_waiting

    return has_waiting(path)
