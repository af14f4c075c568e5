"""Studies as `launch` makes them, without a search."""

from __future__ import annotations

import time
import uuid

from loraxs_search.records import BaseModelRef, DataSource, PromotionRule, SearchPlan, Task
from loraxs_search.studies import StudyFolder, StudyInfo

TASK = Task("t", "sequence-classification", DataSource(), "text", "label", "accuracy", "maximize", ("accuracy",))


def study(name: str, uri: str = "sqlite:///mlflow.db", *, storage: str | None = None) -> StudyFolder:
    """Create a study in which nothing has been tried."""
    info = StudyInfo(
        name,
        uuid.uuid4().hex,
        TASK,
        BaseModelRef("b"),
        SearchPlan(),
        PromotionRule(),
        "s.yaml",
        "/",
        uri,
        time.time(),
        storage=storage,
    )
    return StudyFolder.create(info, "task: sst2\n")
