"""Whether two formulas are equal: asked of math-verify in a process of its own, in bounded time. Light.

math-verify bounds its time by a signal, which only a program's main thread can have, and hosts score in other threads.
Nor can a signal stop one huge multiplication. So the work is in a process that may be ended.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from loraxs_search.errors import LoraxsError

_LONGEST = 1000  # characters; what is longer is no answer, and would be read slowly
_WORKER = Path(__file__).with_name("_math_worker.py")


@lru_cache(maxsize=65_536)
def equal_formulas(reference: str, prediction: str) -> bool:
    """Whether a prediction equals a reference, as math-verify has it: 1/2, 0.5 and \\frac{1}{2} are equal.

    What takes longer than a few seconds, or needs some GB, counts as unequal. Safe in any thread.

    Raises:
        LoraxsError: math-verify cannot be run.
    """
    if reference.split() == prediction.split():
        return True
    if max(len(reference), len(prediction)) > _LONGEST:
        return False
    return _WORKERS.ask(reference, prediction)


class _Workers:
    """One process at a time, started when it is needed, and anew after it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, reference: str, prediction: str) -> bool:
        with self._lock:
            process = self._process = self._process or _started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps([reference, prediction]) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if not answer:  # out of time or memory
                self._end()
            return answer == "true\n"

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if (process := self._process) is not None:
            self._process = None
            process.kill()
            process.communicate()


def _started() -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    # The file by its path and without its folder in front: it needs nothing of this package, and starts fast.
    command = [sys.executable, "-P", str(_WORKER)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        process.kill()
        reason = process.communicate()[1].strip().splitlines()[-1:]
        raise LoraxsError(
            f"Formulas must be compared by math-verify, but it does not start: {''.join(reason)}.",
            hint="install math-verify where trials are trained",
        )
    return process


_WORKERS = _Workers()
atexit.register(_WORKERS.close)
