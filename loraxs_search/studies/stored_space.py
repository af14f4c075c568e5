"""The space of a stored study, as it was at launch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from loraxs_search.search_space import Space, parse_stored
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.info import read_record


def stored_space(folder: StudyFolder) -> Space:
    """Return what a study searches, with the defaults that there were at its launch.

    Of a study from before they were kept, parameters have today's.

    Raises:
        SpaceError: that file has faults.
        StudyError: the study's files are damaged, or its space names what this version cannot search.
    """
    info, path = folder.info, folder.resolved_space_path
    space = parse_stored(
        folder.space_text(),
        source=info.space_source,
        folder=Path(info.space_folder),
        name=info.name,
        resolved=read_record(Space, path) if path.exists() else None,
    )
    return replace(space, task=info.task, base_model=info.base_model, search=info.search, promotion=info.promotion)
