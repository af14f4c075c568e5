"""A split as stored, wherever it is from: its name among others, and the columns that it must have."""

from __future__ import annotations

from typing import Protocol

from loraxs_search.errors import TaskDataError, unknown_name
from loraxs_search.records import Split, Task
from loraxs_search.tasks._columns import Columns


class StoredSplit(Protocol):
    """A split that can be read.

    Args:
        is_file: Whether the user holds it, and can correct it.
    """

    is_file: bool

    @property
    def name(self) -> str:
        """Where it is from, for messages."""
        ...

    @property
    def digest(self) -> str | None:
        """What decides its rows, to cache them by; None where something else caches them."""
        ...

    def read(self, task: Task) -> Columns:
        """Return the columns that the task names.

        Raises:
            TaskDataError: it cannot be read, or a column is missing.
        """
        ...


def wanted_columns(task: Task) -> list[str]:
    """Return the columns that a task names, each once, the label last."""
    return list(dict.fromkeys(name for name in (task.text, task.text_pair, task.label) if name is not None))


def split_names(task: Task, available: list[str], place: str) -> dict[Split, str]:
    """Return our split names to the source's: as declared, or all that go by our names."""
    declared: dict[Split, str] = dict(task.source.splits)
    if not declared:
        ours: tuple[Split, ...] = ("train", "validation", "test")
        declared = {name: name for name in ours if name in available}
    declared.setdefault("train", "train")
    for ours_name, name in declared.items():
        if name not in available:
            raise TaskDataError(
                f"Task {task.name}: {unknown_name(f'splits.{ours_name}', name, available)} Place: {place}.",
                hint="map the source's names under `splits`; only train is required, the others are carved from it",
            )
    return declared


def check_columns(task: Task, columns: Columns, place: str) -> None:
    if not columns.available:
        raise no_rows(task, place)
    roles = (("text", task.text), ("text_pair", task.text_pair), ("label", task.label))
    missing = [(role, name) for role, name in roles if name is not None and name not in columns.available]
    if missing:
        laws = " ".join(unknown_name(f"columns.{role}", name, columns.available) for role, name in missing)
        raise TaskDataError(
            f"Task {task.name}: {laws} Place: {place}.", hint="name the data's own columns under `columns`"
        )
    if not columns.values[task.label]:
        raise no_rows(task, place)


def no_rows(task: Task, place: str) -> TaskDataError:
    return TaskDataError(
        f"Task {task.name}: a split must have rows, but {place} gives none.",
        hint="check the file; a split that is left out of the space is carved from train",
    )
