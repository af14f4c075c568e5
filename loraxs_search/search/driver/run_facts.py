"""What the run of a search says of its study."""

from __future__ import annotations

from loraxs_search.records import HostInfo, Scalar, StudyDescription, Task
from loraxs_search.search_space import Space


def study_facts(space: Space, info: HostInfo) -> StudyDescription:
    """Return what people see of a study in MLflow."""
    parameters = tuple(space.parameters)
    return StudyDescription(space.task, space.base_model.id, parameters, info.num_rows, info.data_fingerprint)


def task_params(task: Task) -> dict[str, Scalar]:
    """Return what the page of a search's run says of its task."""
    return {
        "search.metric": task.search_metric,
        "search.direction": task.search_direction,
        "task.kind": task.kind,
    }
