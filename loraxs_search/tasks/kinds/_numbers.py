"""Numbers and formulas in written answers, compared whatever their form. Light.

Numbers are put into one form, so that `$36`, `36.` and `36.0` are equal. Whether formulas are equal is asked of
math-verify. It bounds its time by a signal, which only a program's main thread can have, and hosts score in other
threads. Nor can a signal stop one huge multiplication. So the work is in a process that may be ended.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from decimal import Context, Decimal, Inexact, localcontext
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from loraxs_search.errors import LoraxsError

_MOST_DIGITS = 100  # longer runs of digits are no answers, and Python reads them slowly
_SPACE = "[ \N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}]"
_RUN = rf"(?:[0-9]{{1,3}}(?:{_SPACE}[0-9]{{3}}(?![0-9]))+|[0-9]+)(?:[.,:'\N{{RIGHT SINGLE QUOTATION MARK}}_][0-9]+)*"
_MINUS = ("-", "\N{MINUS SIGN}", "\N{EN DASH}")
_SIGN = f"[+{''.join(_MINUS[1:])}-]"
_CURRENCY = rf"(?:\\?[$€£¥][ ]?(?P<inner>{_SIGN})?)?"
_WHOLE = rf"[0-9]{{1,3}}(?:{_SPACE}[0-9]{{3}}|,[0-9]{{3}})*|[0-9]+"
# Digits on both sides of a hyphen are a date, a range, a telephone number or a difference.
_HYPHENED = rf"(?:[{''.join(_MINUS[1:])}-](?:\\?[$€£¥])?[0-9]+(?:[.,:/T][0-9]+)*)+"
# A sign after a word, a digit or a bracket is a minus between two things: `x-5` has the number 5.
_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}])(?P<sign>{_SIGN}))?{_CURRENCY}"
    rf"(?:(?P<whole>{_WHOLE})[ ](?=[0-9]+[ ]?/))?(?P<top>{_RUN}|\.[0-9]+)"
    rf"(?:[eE](?P<exponent>[-+]?[0-9]{{1,2}})(?!\w)|[ ]?/[ ]?(?P<bottom>[0-9]+)(?![0-9]|[.,][0-9]))?"
    r"(?P<more>(?:\^|[ ]?/[ ]?[0-9]|[eE][-+]?[0-9]|[\u00b2\u00b3\u00b9\u2070-\u2079])\S*"
    rf"|\*\*-?[0-9]+|!(?=[ ]?[=*/+^-])|{_HYPHENED})?"
)
# How digits may be grouped and where their decimals begin: 1,234.5; 1 234,5 and 1'234.5; 1.234.567 and 1.234,5; 0,5.
_GROUPED = re.compile(
    rf"(?P<whole>[1-9][0-9]{{0,2}}(?:(?P<mark>{_SPACE}|['\N{{RIGHT SINGLE QUOTATION MARK}}_])[0-9]{{3}})"
    r"(?:(?P=mark)[0-9]{3})*)(?:[.,](?P<part>[0-9]+))?"
    r"|(?P<english>[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.(?P<english_part>[0-9]+))?"
    r"|(?P<dotted>[1-9][0-9]{0,2}(?:\.[0-9]{3})+)(?:,(?P<dotted_part>[0-9]+))"
    r"|(?P<dots>[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,})"
    r"|(?P<plain>[0-9]*)(?:[.,](?P<plain_part>[0-9]+))?"
)
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_LATEX_COMMA = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,!])(?=[0-9]{3})")
_IN_LATEX = re.compile(r"(?:(?:frac|sqrt)\{?|\}\{)$")  # a number that is a part of a formula


def first_number(text: str) -> str:
    """Return the first number of a text in canonical form; the empty text where there is none."""
    return next(_numbers(text), "")


def last_number(text: str) -> str:
    """Return the last number of a text in canonical form; the empty text where there is none."""
    return next(iter([*_numbers(text)][-1:]), "")


def only_number(text: str) -> str:
    """Return the number of a text that holds one, such as `12 apples`; the empty text otherwise."""
    numbers = [*_numbers(text)]
    return numbers[0] if len(numbers) == 1 else ""


def _numbers(text: str) -> Iterator[str]:
    """Yield the numbers of a text, in canonical form; an empty text for a number that cannot be read.

    Read are signs, thousands `1,234`, `1 234` or `1.234.567`, decimals, also behind a comma where it cannot stand for
    thousands, `1e3`, fractions `3/4` and `1 1/2`; currency signs before and percent signs after a number are left out.
    What has digits in another order, such as a date, a time, a range, a ratio or a power, is no number, nor is a part
    of a fraction or root in LaTeX: `math` reads those.
    """
    text = _VULGAR.sub(_spelled, _LATEX_COMMA.sub(",", text))
    for match in _NUMBER.finditer(text):
        before = text[max(0, match.start() - 5) : match.start()]
        is_odd = len(match[0]) > _MOST_DIGITS or match["more"] or _IN_LATEX.search(before)
        value = None if is_odd else _value(match)
        yield "" if value is None else canonical(value)


def _spelled(vulgar: re.Match[str]) -> str:
    """Return a character that is a fraction, such as a half, as two numbers, behind a space after a digit."""
    value = Fraction(unicodedata.numeric(vulgar[0])).limit_denominator(10)
    start = vulgar.start()
    before = " " if vulgar.string[max(0, start - 1) : start].isdigit() else ""
    return f"{before}{value.numerator}/{value.denominator}"


def _value(match: re.Match[str]) -> Fraction | None:
    value = _decimal(match["top"])
    if value is None:
        return None
    if match["bottom"] is not None:
        bottom = int(match["bottom"])
        if not bottom or (match["whole"] and value >= bottom):
            return None
        value /= bottom
    elif match["whole"]:
        return None
    value += int(re.sub("[^0-9]", "", match["whole"] or "0"))
    value *= Fraction(10) ** int(match["exponent"] or 0)
    return -value if (match["sign"] in _MINUS) != (match["inner"] in _MINUS) else value


def _decimal(digits: str) -> Fraction | None:
    """Return what digits with marks between them mean; None if no way to write numbers has them so."""
    match = _GROUPED.fullmatch(digits)
    if match is None:
        return None
    found = match.groupdict()
    whole = next(found[name] for name in ("whole", "english", "dotted", "dots", "plain") if found[name] is not None)
    part = next((value for name, value in found.items() if name.endswith("part") and value is not None), "")
    return Fraction(f"{re.sub('[^0-9]', '', whole) or '0'}.{part or '0'}")


_EXACT = Context(prec=20 * _MOST_DIGITS, traps=[Inexact])  # digits enough for a fraction of the longest numbers


def canonical(value: Fraction) -> str:
    """Return a number as the shortest exact decimal, or as a reduced fraction where there is none: 0.5, 36, 1/3."""
    try:
        with localcontext(_EXACT):
            return format((Decimal(value.numerator) / value.denominator).normalize(), "f")
    except Inexact:
        return f"{value.numerator}/{value.denominator}"


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
