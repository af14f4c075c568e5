"""The command line as a user starts it, in processes of its own; ports that are free."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def clean_variables(**variables: str) -> dict[str, str]:
    """Return the environment of a process that finds nothing of ours."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"HF_HUB_OFFLINE": "1"} | variables


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command line in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "loraxs_search", *arguments],
        env={**os.environ, "LORAXS_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(home: Path, *arguments: str, timeout_s: float = 400.0) -> tuple[str, str]:
    """Run a command that must succeed; return what it printed on stdout and stderr."""
    with start(home, *arguments) as process:
        out, talk = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, talk
    return out, talk


def until(reached: Callable[[], bool], said: Callable[[], str] = str, timeout_s: float = 240.0) -> None:
    """Wait until something is so; one that waits in vain fails with what `said` returns."""
    end = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < end, said()
        time.sleep(0.05)


def wait_for(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Wait until something is so, while the process lives."""
    until(lambda: process.poll() is not None or reached())
    assert process.poll() is None, f"it ended early: {process.communicate()}"


def num_reports(study: str) -> int:
    """Count the reports of a study so far."""
    from loraxs_search.studies.folder import StudyFolder

    return len(StudyFolder.open(study).journal().reports) if StudyFolder.exists(study) else 0


@dataclass(frozen=True)
class Shell:
    """Runs the command line as a user does: another process, in a folder that is not the checkout.

    Args:
        home: Its state folder.
        folder: Its working directory.
    """

    home: Path
    folder: Path

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "loraxs_search", *args]

    def environment(self) -> dict[str, str]:
        return os.environ | {"LORAXS_HOME": str(self.home), "COLUMNS": "120"}

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def ok(self, *args: str) -> str:
        """Run, expect success without a traceback, and return what was printed on stdout."""
        done = self.run(*args)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout


# Above those of Ray's workers, and below those that the system gives to whoever asks for any: a server may begin to
# listen long after its port was chosen.
_PORTS = range(20_000, 32_000)


_given = set[int]()


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on, and that this process has not given before."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def ok(self) -> str:
        """What is on stdout, after a success without a traceback."""
        assert self.code == 0, self.err
        assert "Traceback" not in self.err
        return self.out

    def is_error(self, code: int, *parts: str) -> bool:
        """Check the form errors have: `error: ...`, a blank line, `hint: ...`, no traceback, JSON on stdout at most."""
        message, hint = self.err.split("\n\nhint: ")
        assert message.splitlines()[-1] != ""
        assert "error: " in message
        assert hint.strip()
        assert "Traceback" not in self.err
        assert self.out == "" or json.loads(self.out)["error"]["exit_code"] == code  # under --json
        assert self.code == code, self.err
        for part in parts:
            assert part in self.err
        return True
