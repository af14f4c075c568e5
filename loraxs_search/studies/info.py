"""What a study searches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraxs_search.errors import StudyError
from loraxs_search.records import BaseModelRef, PromotionRule, SearchPlan, StartFrom, Task
from loraxs_search.studies.reading import parse_record

SCHEMA_VERSION = 2  # raise it where an earlier version would train a study, or answer, otherwise


@dataclass(frozen=True)
class StudyInfo:
    """What a study searches, fixed when it is created.

    Args:
        study_id: Never used twice, even when a name is.
        space_source: Path or shipped name the space was read from; `space_folder` is where its relative paths start.
        tracking_uri: Where its trials are recorded; no user and no password are in it.
        start_from: The registered adapter that its trials start from; None if they start anew.
        storage: Where copies of its folder are kept, for drivers on other machines; None means nowhere.
        schema_version: By which a version of this program knows what it cannot read; studies before 2 do not say it.
    """

    name: str
    study_id: str
    task: Task
    base_model: BaseModelRef
    search: SearchPlan
    promotion: PromotionRule
    space_source: str
    space_folder: str
    tracking_uri: str
    created_at: float
    versions: Mapping[str, str] = field(default_factory=dict)
    storage: str | None = None
    start_from: StartFrom | None = None
    schema_version: int = 1


@dataclass(frozen=True)
class _Schema:
    schema_version: int = 1


def parse_info(text: str | bytes, place: str) -> StudyInfo:
    """Read the text of a `study.json`.

    Args:
        place: The file, as people name it.
    Raises:
        StudyError: it is damaged, or of a later version.
    """
    version = parse_record(_Schema, text, place).schema_version
    if version > SCHEMA_VERSION:
        raise StudyError(
            f"`schema_version` must be at most {SCHEMA_VERSION}, but got {version} in {place}.",
            hint="a later version of loraxs-search launched the study: upgrade this one",
        )
    return parse_record(StudyInfo, text, place)
