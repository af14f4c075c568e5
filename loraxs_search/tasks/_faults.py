"""Faults of a task's data: all of them in one error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from loraxs_search.errors import TaskDataError
from loraxs_search.records import Task


class JoinedDataError(TaskDataError):
    """Several faults of one task's data; the message lists all of them."""

    def __init__(self, task: Task, errors: Sequence[TaskDataError]) -> None:
        messages = [error.message.removeprefix(f"Task {task.name}: ") for error in errors]
        hints = dict.fromkeys(error.hint for error in errors if error.hint)
        super().__init__(
            "\n".join([f"Task {task.name} has {len(messages)} faults:", *messages]), hint="; ".join(hints) or None
        )
        self.errors = tuple(errors)


@contextlib.contextmanager
def collected(errors: list[TaskDataError]) -> Iterator[None]:
    """Put the faults that the block raises into `errors`, and go on behind it."""
    try:
        yield
    except JoinedDataError as error:
        errors += error.errors
    except TaskDataError as error:
        errors.append(error)


def joined(task: Task, errors: Sequence[TaskDataError]) -> TaskDataError:
    """Return one error that lists all of them."""
    return errors[0] if len(errors) == 1 else JoinedDataError(task, errors)
