"""Environments of other people's software, with versions of their own: what ours writes is read by it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

KEPT = "LORAXS_TEST_ENVIRONMENTS"  # a folder where they are kept from one run of the tests to the next


@dataclass(frozen=True)
class Environment:
    """A Python that has what was installed, and nothing of ours."""

    python: Path

    def pip(self, *arguments: str, variables: Mapping[str, str] | None = None) -> None:
        """Install; where that fails, the test is skipped with the reason."""
        command = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
        done = subprocess.run(
            command, env=clean_variables(variables), capture_output=True, text=True, timeout=3000, check=False
        )
        if done.returncode:
            reason = next(iter(reversed(done.stderr.strip().splitlines())), "without a word")
            pytest.skip(f"{arguments[-1]} cannot be installed here: {reason}")

    def requirements(self, distribution: str, without: Sequence[str] = ()) -> list[str]:
        """Return what an installed distribution requires, without its extras and some other distributions."""
        code = "import importlib.metadata as m, json, sys; print(json.dumps(m.requires(sys.argv[1])))"
        listed = json.loads(self.run(code, distribution))
        names = {line: re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in listed}
        return [line for line in listed if "extra ==" not in line and names[line] not in without]

    def run(
        self, code: str, *arguments: str, variables: Mapping[str, str] | None = None, timeout_s: float = 900.0
    ) -> str:
        """Run a program, expect success, and return what it printed."""
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "program.py")  # a file: processes that it starts may import it again
            program.write_text(code)
            command = [str(self.python), str(program), *arguments]
            done = subprocess.run(
                command, env=clean_variables(variables), capture_output=True, text=True, timeout=timeout_s, check=False
            )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout


def environment(folder: Path, name: str, install: Callable[[Environment], None]) -> Environment:
    """Return an environment that is made once in `folder`, or where `LORAXS_TEST_ENVIRONMENTS` says.

    Args:
        install: Puts into it what it is for.
    """
    root = kept_in(folder)
    place, ready = root / name, root / f"{name}.ready"
    made = Environment(place / "bin" / "python")
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True, timeout=120)
        install(made)
        ready.touch()
    return made


def kept_in(folder: Path) -> Path:
    """Return where other people's software goes: `folder`, unless LORAXS_TEST_ENVIRONMENTS names another."""
    return Path(os.environ[KEPT]) if KEPT in os.environ else folder


def version(distribution: str) -> str:
    """Return the version of a distribution that the tests use, for an environment that is to have the same."""
    return f"{distribution}=={importlib.metadata.version(distribution)}"


def clean_variables(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a process that finds nothing of ours."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"HF_HUB_OFFLINE": "1"} | dict(variables or {})
