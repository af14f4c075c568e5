"""Finds the base of a task; where it is missing, the error lists the faults of the rows too."""

from __future__ import annotations

from loraxs_search.base_model import locate
from loraxs_search.errors import BaseModelError, TaskDataError
from loraxs_search.records import BaseModel, BaseModelRef, Task
from loraxs_search.tasks.prepared import load_data


def locate_for(task: Task, ref: BaseModelRef) -> BaseModel:
    """Find a base model as `locate` does; a user who must fix that sees at once what else is wrong.

    Raises:
        BaseModelError: it is not found, or not what it should be; its message has the faults of the task's rows too.
    """
    try:
        return locate(ref)
    except BaseModelError as error:
        try:
            load_data(task)
        except TaskDataError as other:
            hints = [hint for hint in (error.hint, other.hint) if hint]
            raise BaseModelError(f"{error}\n{other}", hint="; ".join(hints)) from error
        raise
