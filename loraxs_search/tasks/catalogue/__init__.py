"""Well-known tasks by name, so that a search space can say `task: sst2`. A file of this folder is a family of them."""

from __future__ import annotations

from functools import cache

from loraxs_search.errors import UsageError, unknown_name
from loraxs_search.records import Task
from loraxs_search.tasks.catalogue._entry import CatalogueEntry

__all__ = ["CatalogueEntry", "catalogue_entry", "catalogue_names", "catalogue_task"]


@cache
def _entries() -> dict[str, CatalogueEntry]:
    from loraxs_search.tasks.catalogue._commonsense import COMMONSENSE
    from loraxs_search.tasks.catalogue._glue import GLUE
    from loraxs_search.tasks.catalogue._maths import MATHS

    return {entry.name: entry for entry in (*GLUE, *MATHS, *COMMONSENSE)}


def catalogue_names() -> list[str]:
    """Return the names that `catalogue_task` knows, sorted."""
    return sorted(_entries())


def catalogue_entry(name: str) -> CatalogueEntry:
    """Return an entry, and what is known of it besides the task.

    Raises:
        UsageError: there is no such task; the message lists the known ones, nearest first.
    """
    entries = _entries()
    if name not in entries:
        raise UsageError(unknown_name("task", name, entries), hint="`loraxs-search tasks ls` says what each one is")
    return entries[name]


def catalogue_task(name: str) -> Task:
    """Return a task of the catalogue; its first metric is the one searched for.

    Raises:
        UsageError: there is no such task; the message lists the known ones, nearest first.
    """
    return catalogue_entry(name).task()
