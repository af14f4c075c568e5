"""Says which formulas are equal; run as a separate process by `text_generation`, since one of them may never end.

Lines of JSON in, [reference, prediction]; lines `true` and `false` out, after a first line `ready`. It imports nothing
of this package. Time is that of the processor, so that a busy machine changes no answer.
"""

from __future__ import annotations

import json
import logging
import math
import re
import resource
import signal
import sys
from functools import lru_cache
from typing import Any, NoReturn

LIMIT_S = 3.0  # of the processor, for one pair
_GROUPED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?![\d/]| ?/)")  # 3 500, which math-verify reads as 3 + 500
_MIXED = re.compile(r"(?<![\d./])(\d+) +(\d+) ?/ ?(\d+)(?!\d)")  # 1 1/2: math-verify reads only the 1
_POWER = re.compile(r"(\d)[eE]([-+]?\d+)(?![\w.])")  # 1e5, which math-verify reads as 1 * e * 5
_APART = re.compile(r"(?<![A-Za-z\d])(?<![A-Za-z] )\d+ +\d|\d\.\d+\.\d")  # 2 3 is added up, 2.000.000 is 2 * 0
_MOST_BYTES = 4 * 2**30  # of address space


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    """Return what math-verify reads in an answer, as LaTeX or as plain text."""
    from math_verify import parse

    plain = _MIXED.sub(r"\1\\frac{\2}{\3}", _GROUPED.sub(lambda it: it[0].replace(" ", ""), text.replace("\\$", "")))
    plain = _POWER.sub(r"\1\\cdot 10^{\2}", plain)
    if _APART.search(plain):
        return []
    if "\\boxed" not in plain and (plain.count("$") < 2 or plain.count("$") % 2):
        plain = f"${plain.replace('$', '')}$"
    return parse(plain, parsing_timeout=None)  # their own limit wakes up by wall time


def _equal(reference: str, prediction: str) -> bool:
    """Whether math-verify holds the prediction equal to the reference, in time."""
    from math_verify import verify
    from math_verify.errors import TimeoutException

    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    # A multiplication of huge numbers sees no signal: then the system ends this process.
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + LIMIT_S) + 1, hard))
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S, 0.1)  # again, should someone swallow the first
    try:
        return bool(verify(_parsed(reference), _parsed(prediction), timeout_seconds=None))
    except (TimeoutException, MemoryError, RecursionError):
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _out_of_time(*_: object) -> NoReturn:
    from math_verify.errors import TimeoutException

    raise TimeoutException


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _main() -> None:
    """Answer until the input ends."""
    from math_verify import verify

    verify(_parsed("\\frac{1}{2}"), _parsed("0.5"), timeout_seconds=None)  # loads all it needs before anything is timed

    logging.disable()
    signal.signal(signal.SIGPROF, _out_of_time)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    _say("ready")
    for line in sys.stdin:
        _say(json.dumps(_equal(*json.loads(line))))


if __name__ == "__main__":
    _main()
