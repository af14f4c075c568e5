"""The command line in this process, which need not be started first; what searches has a process of its own."""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from loraxs_search.cli._main import Talk, run
from support.shell import Shell

SEARCHES = ("launch", "resume")


@dataclass(frozen=True)
class InProcess(Shell):
    """Runs the command line in this process, as `Shell` does in one of its own: a warning there is no error."""

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        if args[0] in SEARCHES:
            return super().run(*args)
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        with self.as_there(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _talking():
            warnings.simplefilter("ignore")
            code = run(args)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(self.command(*args), code, out.read(), err.read())

    @contextlib.contextmanager
    def as_there(self) -> Iterator[None]:
        """Be in its folder, with its environment."""
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            for name, value in self.environment().items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            yield


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """Have warnings on stderr, as `main` does."""
    handler = Talk()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
