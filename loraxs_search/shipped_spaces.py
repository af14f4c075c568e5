"""The spaces and well-known tasks that come with the package: in a wheel inside it, in a checkout beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraxs_search.errors import UsageError, unknown_name


@dataclass(frozen=True)
class ShippedSpace:
    """A space that comes with the package.

    Args:
        space: Its name, as `launch` and `check` take it.
        about: What it is, in a line.
    """

    space: str
    about: str


def spaces() -> list[ShippedSpace]:
    """Return the spaces that come with the package, by name."""
    return [ShippedSpace(name, _about(shipped_space_path(name))) for name in shipped_spaces()]


def shipped_spaces() -> list[str]:
    """Return the names of the shipped spaces, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def shipped_space_path(name: str) -> Path:
    """Return the file of a shipped space; `movie-reviews` and `movie_reviews.yaml` both mean `movie_reviews`.

    Raises:
        UsageError: there is no such space; the message lists those there are.
    """
    plain = name.removesuffix(".yaml").replace("-", "_").lower()
    for known in shipped_spaces():
        if known.replace("-", "_").lower() == plain:
            return _folder() / f"{known}.yaml"
    raise UsageError(unknown_name("space", name, shipped_spaces()), hint="`loraxs-search spaces ls` lists them")


def shipped_tasks() -> list[str]:
    """Return the names of the well-known tasks, sorted."""
    return sorted(path.stem for path in (_folder() / "tasks").glob("*.yaml"))


def shipped_task_path(name: str) -> Path:
    """Return the file of a well-known task.

    Raises:
        UsageError: there is no such task; the message lists those there are, nearest first.
    """
    if name not in (known := shipped_tasks()):
        raise UsageError(unknown_name("task", name, known), hint="`loraxs-search tasks ls` says what each one is")
    return _folder() / "tasks" / f"{name}.yaml"


def schema_path() -> Path:
    """Return the file of the JSON Schema that editors check a space with."""
    return _folder() / "space.schema.json"


def _about(path: Path) -> str:
    """Return the first line of a space file, which says what it is."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


def _folder() -> Path:
    package = Path(__file__).resolve().parent
    installed = package / "_spaces"
    return installed if installed.is_dir() else package.parent / "search_spaces"
