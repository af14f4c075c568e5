"""What a study searches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loraxs_search.records import BaseModelRef, PromotionRule, SearchPlan, StartFrom, Task


@dataclass(frozen=True)
class StudyInfo:
    """What a study searches, fixed when it is created.

    Args:
        study_id: Never used twice, even when a name is.
        space_source: Path or shipped name the space was read from; `space_folder` is where its relative paths start.
        tracking_uri: Where its trials are recorded; no user and no password are in it.
        start_from: The registered adapter that its trials start from; None where they start anew.
        storage: Where copies of its folder are kept, for drivers on other machines; None means nowhere.
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
