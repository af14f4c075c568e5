"""A study's trials for Optuna's own tools: in memory, or in a file that Optuna Dashboard opens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search.errors import UsageError
from loraxs_search.home import disk_faults
from loraxs_search.studies.folder import StudyFolder

if TYPE_CHECKING:
    from loraxs_search.samplers.trials import StudyTrials


def study_trials(folder: StudyFolder) -> StudyTrials:
    """Return a study's trials as Optuna has them.

    Raises:
        StudyError: the log is damaged.
    """
    from loraxs_search.samplers.trials import StudyTrials

    trials = StudyTrials(folder.info.task, folder.info.search)
    for event in folder.journal().history():
        trials.apply(event)
    return trials


def export_optuna(study: str, path: Path) -> int:
    """Write a study's trials into a new file, an Optuna journal; return how many there are.

    Raises:
        UsageError: the file is there already.
        StudyError: there is no such study, or it is damaged.
        HomeError: the file cannot be written.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder = StudyFolder.open(study)
    if path.exists():
        raise UsageError(f"`--optuna` must name a new file, but {path} exists.", hint="remove it, or name another file")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    exported = study_trials(folder)
    with disk_faults(path):
        storage = JournalStorage(JournalFileBackend(str(path)))
        written = optuna.create_study(storage=storage, study_name=study, direction=exported.direction)
        written.add_trials(exported.trials)
    return len(exported.trials)
