"""What the run of a search says of its study."""

from __future__ import annotations

from loraxs_search.records import HostInfo, Scalar, Task, WarmTrials
from loraxs_search.search_space import Space
from loraxs_search.tracking import StudyFacts


def study_facts(space: Space, info: HostInfo) -> StudyFacts:
    """Return what people see of a study in MLflow."""
    parameters = tuple(space.parameters)
    return StudyFacts(space.task, space.base_model.id, parameters, info.num_rows, info.data_fingerprint)


def task_params(task: Task, warm: WarmTrials) -> dict[str, Scalar]:
    """Return what searches of other machines must know to start from this one, and where this one started."""
    facts: dict[str, Scalar] = {
        "search.metric": task.search_metric,
        "search.direction": task.search_direction,
        "task.kind": task.kind,
    }
    return facts | ({"warm_start": ", ".join(warm.studies)} if warm.trials else {})
