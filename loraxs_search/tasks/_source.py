"""Stored splits of any source: which names they have, and the columns that they must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from loraxs_search.errors import TaskDataError, unknown_name
from loraxs_search.records import Split, Task
from loraxs_search.tasks._columns import Columns
from loraxs_search.tasks._texts import composed
from loraxs_search.tasks.kinds import kind_of


class StoredSplit(Protocol):
    """A split that can be read.

    Args:
        is_file: Whether it is the user's own file, which they can correct.
    """

    is_file: bool

    @property
    def name(self) -> str:
        """Its source, for messages."""
        ...

    @property
    def digest(self) -> str | None:
        """What identifies its rows in the cache; None where something else caches them."""
        ...

    def label_names(self, task: Task) -> Sequence[str] | None:
        """Return the names that the data give to the ids of the column that may have some; None without any."""
        ...

    def read(self, task: Task, spare: frozenset[str] = frozenset()) -> Columns:
        """Return the columns that the task names.

        Args:
            spare: Those that may be missing.
        Raises:
            TaskDataError: it cannot be read, or a column is missing.
        """
        ...


def wanted_columns(task: Task) -> list[str]:
    """Return the columns that a task names, each once, the one that may have label names last."""
    return list(dict.fromkeys(kind_of(task).columns.values()))


def split_names(task: Task, available: list[str], place: str) -> dict[Split, str]:
    """Return our split names to the source's: as declared, or all that go by our names."""
    declared: dict[Split, str] = dict(task.source.splits)
    if not declared:
        splits: tuple[Split, ...] = ("train", "validation", "test")
        declared = {name: name for name in splits if name in available}
    declared.setdefault("train", "train")
    for split, name in declared.items():
        if name not in available:
            raise TaskDataError(
                f"Task {task.name}: {unknown_name(f'splits.{split}', name, available)} Place: {place}.",
                hint="map the source's names under `splits`; only train is required, the others are carved from it",
            )
    return declared


def check_numbering(task: Task, splits: Mapping[Split, StoredSplit]) -> None:
    """Refuse splits in which an id has different names, unless all names are the task's, which then decide.

    Raises:
        TaskDataError: two splits differ.
    """
    if not task.labels:
        return
    known = {composed(name).casefold() for name in task.labels}
    named = [(split, names) for split in splits.values() if (names := split.label_names(task)) is not None]
    for split, names in named[1:]:
        first, others = named[0]
        differing = next((id_ for id_, pair in enumerate(zip(others, names, strict=False)) if pair[0] != pair[1]), None)
        if differing is not None and not {composed(name).casefold() for name in (*others, *names)} <= known:
            raise TaskDataError(
                f"Task {task.name}: an id must have one name in all splits, but {differing} is {others[differing]!r} in"
                f" {first.name} and {names[differing]!r} in {split.name}.",
                hint="give the task's `labels` the names of the data, which then decide, or number the splits alike",
            )


def check_columns(task: Task, columns: Columns, place: str, spare: frozenset[str]) -> None:
    if not columns.available:
        raise no_rows(task, place)
    wanted = kind_of(task).columns
    missing = [(key, name) for key, name in wanted.items() if name not in {*columns.available, *spare}]
    if missing:
        laws = " ".join(unknown_name(key, name, columns.available) for key, name in missing)
        section = missing[0][0].partition(".")[0]
        raise TaskDataError(
            f"Task {task.name}: {laws} Place: {place}.", hint=f"name the data's own columns under `{section}`"
        )
    if not columns.values[list(wanted.values())[-1]]:
        raise no_rows(task, place)


def no_rows(task: Task | None, place: str) -> TaskDataError:
    who = "" if task is None else f"Task {task.name}: "
    return TaskDataError(
        f"{who}a split must have rows, but {place} gives none.",
        hint="check the file; a split that is left out of the space is carved from train",
    )
