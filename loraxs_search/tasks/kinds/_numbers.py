"""Numbers in written answers: found, and put into one form, so that `$36`, `36.` and `36.0` are equal. Light."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

_MOST_DIGITS = 100  # longer runs of digits are no answers, and Python reads them slowly
_VALUE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_MINUS = ("-", "\N{MINUS SIGN}")
_SIGN = "[+\N{MINUS SIGN}-]"
_CURRENCY = rf"(?:\\?[$€£¥][ ]?(?P<inner>{_SIGN})?)?"
# A sign after a word, a digit or a bracket is a minus between two things: `x-5` has the number 5.
_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}])(?P<sign>{_SIGN}))?{_CURRENCY}"
    rf"(?:(?P<whole>[0-9]+)[ ])?(?P<top>{_VALUE})"
    rf"(?:[eE](?P<exponent>[-+]?[0-9]{{1,2}})(?!\w)|[ ]?/[ ]?(?P<bottom>[0-9]+)(?![0-9.]))?"
)


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
    """Yield the numbers of a text, in canonical form.

    Read are signs, thousands `1,234`, decimals, `1e3`, fractions `3/4` and `1 1/2`; currency signs before and percent
    signs after a number are left out. LaTeX is not read: that is what `math` is for.
    """
    position = 0
    while match := _NUMBER.search(text, position):
        whole, bottom = match["whole"], match["bottom"]
        if whole is not None and (bottom is None or not match["top"].isdecimal()):
            position = match.end("whole")  # two numbers with a space between them, not `1 1/2`
            match = _NUMBER.fullmatch(text, match.start(), position)
            assert match is not None  # digits are a number
            whole = bottom = None
        position = match.end()
        if len(match[0]) <= _MOST_DIGITS:
            yield canonical(_value(match, whole, bottom))


def _value(match: re.Match[str], whole: str | None, bottom: str | None) -> Fraction:
    value = Fraction(match["top"].replace(",", ""))
    if bottom is not None and int(bottom):
        value /= int(bottom)
    value += int(whole or 0)
    value *= Fraction(10) ** int(match["exponent"] or 0)
    return -value if (match["sign"] in _MINUS) != (match["inner"] in _MINUS) else value


def canonical(value: Fraction) -> str:
    """Return a number as the shortest exact decimal, or as a reduced fraction where there is none: 0.5, 36, 1/3."""
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest > 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
