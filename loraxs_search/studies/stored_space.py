"""The space of a stored study, as it was at launch."""

from __future__ import annotations

from dataclasses import replace

from loraxs_search.search_space.load import as_launched
from loraxs_search.search_space.space import Space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.info import read_record


def stored_space(folder: StudyFolder) -> Space:
    """Return what a study searches, with the defaults that there were at its launch.

    Raises:
        StudyError: the study's files are damaged.
    """
    info = folder.info
    text = folder.space_text()
    space = as_launched(read_record(Space, folder.resolved_space_path), text, info.name)
    return replace(space, task=info.task, base_model=info.base_model, search=info.search, promotion=info.promotion)
