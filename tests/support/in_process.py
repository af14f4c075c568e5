"""The command line in this process, which need not be started first; what searches has a process of its own."""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from loraxs_search.cli._main import Talk, run
from loraxs_search.methods import METHODS
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.tasks.kinds import KINDS
from support.shell import Shell

SEARCHES = ("launch", "resume")


@dataclass(frozen=True)
class InProcess(Shell):
    """Runs the command line in this process, as `Shell` does in one of its own: a warning there is no error."""

    def run(self, *args: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        if args[0] in SEARCHES:
            return super().run(*args, timeout_s=timeout_s)
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        with self.as_there(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _talking():
            warnings.simplefilter("ignore")
            code = run(args)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(self.command(*args), code, out.read(), err.read())

    @contextlib.contextmanager
    def as_there(self) -> Iterator[None]:
        """Be in its folder, with its environment and what is installed in its package."""
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            for name, value in self.environment().items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            if self.package is not None:
                _install(self.package, patch)
            yield


def _install(package: Path, patch: pytest.MonkeyPatch) -> None:
    """Have the registries of this process know the entries of distributions in a folder, until the patch is undone."""
    patch.syspath_prepend(str(package))
    for module in package.glob("*.py"):
        patch.delitem(sys.modules, module.stem, raising=False)
    for registry in (METHODS, SCHEDULERS, KINDS):
        registry.names()  # it looks once, and remembers
        patch.setattr(registry, "_entries", dict(registry._entries))
        patch.delattr(registry, "_installed")


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """Have warnings on stderr, as `main` does."""
    handler = Talk()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
