"""Well-known tasks by name, so that a space can say `task: sst2`; each is a file in `search_spaces/tasks`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loraxs_search.search_space._document import parse_document
from loraxs_search.shipped_spaces import shipped_task_path


@dataclass(frozen=True)
class CatalogueEntry:
    """A well-known task.

    Args:
        text: Its file: the task's section, below comments that say what it is and what is known of it.
        section: The task's section, as a space file has it.
    """

    text: str
    section: dict[str, Any]

    @property
    def comments(self) -> list[str]:
        """What the file says of the task: what it is in a line, then its pages, rows and notes."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("# ")]


def catalogue_entry(name: str) -> CatalogueEntry:
    """Return a task of the catalogue.

    Raises:
        UsageError: there is no such task; the message lists the known ones, nearest first.
    """
    path = shipped_task_path(name)
    text = path.read_text(encoding="utf-8")
    return CatalogueEntry(text, parse_document(text, str(path)).data["task"])
