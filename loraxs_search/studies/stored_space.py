"""The space of a stored study, as it was at launch."""

from __future__ import annotations

from dataclasses import replace

from loraxs_search.search_space.distributions import METHOD, PARAMETERS
from loraxs_search.search_space.document import as_mapping, parse_document
from loraxs_search.search_space.space import Space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.info import read_record


def stored_space(folder: StudyFolder) -> Space:
    """Return what a study searches, with the defaults that there were at its launch.

    Raises:
        StudyError: the study's files are damaged.
    """
    info, text, space = folder.info, folder.space_text(), read_record(Space, folder.resolved_space_path)
    # Samplers draw and encode in the order of the file: a stored record has its keys sorted.
    written = (METHOD, *as_mapping(as_mapping(parse_document(text, space.source).data).get(PARAMETERS)))
    place = {parameter: number for number, parameter in enumerate(written)}
    ordered = sorted(space.parameters, key=lambda parameter: place.get(parameter, len(place)))
    return replace(
        space,
        text=text,
        name=info.name,
        parameters={parameter: space.parameters[parameter] for parameter in ordered},
        task=info.task,
        base_model=info.base_model,
        search=info.search,
        promotion=info.promotion,
    )
