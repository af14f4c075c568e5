"""A notebook without a browser: an IPython shell that keeps what its cells display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config


class ZMQInteractiveShell(InteractiveShell):
    """What libraries know a notebook by is the name of its shell."""


class Notebook:
    """Runs cells; `shown` has the HTML of each display, updates too, in their order."""

    def __init__(self, shell: InteractiveShell, published: CapturingDisplayPublisher) -> None:
        self._shell, self._published = shell, published

    def run(self, cell: str) -> None:
        """Run a cell, and raise what it raised."""
        self._shell.run_cell(cell).raise_error()

    def __getitem__(self, name: str) -> Any:
        return self._shell.user_ns[name]

    @property
    def shown(self) -> list[str]:
        return [output["data"].get("text/html", "") for output in self._published.outputs]


@contextmanager
def notebook() -> Iterator[Notebook]:
    """Open a notebook; set IPYTHONDIR before, or it writes to the user's home."""
    shell = ZMQInteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    published = shell.display_pub = CapturingDisplayPublisher(parent=shell)
    try:
        yield Notebook(shell, published)
    finally:
        shell.restore_sys_module_state()  # this process's own `__main__`
        ZMQInteractiveShell.clear_instance()
