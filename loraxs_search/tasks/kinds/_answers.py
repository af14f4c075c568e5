"""What of a written text is its answer, in which form answers are compared, and what may be wrong with them. Light."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from decimal import Context, Decimal
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import regex
from pydantic import AfterValidator, Field, PlainValidator

from loraxs_search.errors import LoraxsError
from loraxs_search.records.literals import Text
from loraxs_search.tasks.kinds._base import Fault, Section
from loraxs_search.tasks.metrics import first_of
from loraxs_search.tasks.rows import composed

# Numbers are put into one form, so that `$36`, `36.` and `36.0` are equal. Whether formulas are equal is asked of
# math-verify. It bounds its time by a signal, which only a program's main thread can have, and hosts score in other
# threads. Nor can a signal stop one huge multiplication. So the work is in a process that may be ended.

_MOST_DIGITS = 100  # longer runs of digits are no answers, and Python reads them slowly
_SPACE = "[ \N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}]"
_RUN = rf"(?:[0-9]{{1,3}}(?:{_SPACE}[0-9]{{3}}(?![0-9]))+|[0-9]+)(?:[.,:'\N{{RIGHT SINGLE QUOTATION MARK}}_][0-9]+)*"
_MINUS = ("-", "\N{MINUS SIGN}", "\N{EN DASH}")
_SIGN = f"[+{''.join(_MINUS[1:])}-]"
_CURRENCY = rf"(?:\\?[$€£¥][ ]?(?P<inner>{_SIGN})?)?"
# Digits on both sides of a hyphen are a date, a range, a telephone number or a difference.
_VULGAR = "[\u00bc-\u00be\u2150-\u215e]"  # fractions that are one character
_HYPHENED = rf"(?:[{''.join(_MINUS[1:])}-](?:\\?[$€£¥])?[0-9]+(?:[.,:/T][0-9]+)*)+"
# A sign after a word, a digit or a bracket is a minus between two things: `x-5` has the number 5.
_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}])(?P<sign>{_SIGN}))?{_CURRENCY}(?P<digits>{_RUN}|\.[0-9]+|{_VULGAR})"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,2})(?!\w))?"
    rf"(?P<more>(?:\^|(?:[ ][0-9]+)?[ ]?/[ ]?[0-9]|[eE][-+]?[0-9]|[\u00b2\u00b3\u00b9\u2070-\u2079]|[ ]?{_VULGAR})\S*"
    rf"|\*\*-?[0-9]+|!(?=[ ]?[=*/+^-])|{_HYPHENED})?"
)
# How digits may be grouped and where their decimals begin: 1 234,5 and 1'234.5; 1,234.5; 1.234,5; 1.234.567; 0,5.
_GROUPED = [
    re.compile(form)
    for form in (
        rf"[1-9][0-9]{{0,2}}({_SPACE}|['\N{{RIGHT SINGLE QUOTATION MARK}}_])[0-9]{{3}}(?:\1[0-9]{{3}})*"
        r"(?:[.,](?P<part>[0-9]+))?",
        r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.(?P<part>[0-9]+))?",
        r"[1-9][0-9]{0,2}(?:\.[0-9]{3})+,(?P<part>[0-9]+)",
        r"[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}",
        r"[0-9]*(?:[.,](?P<part>[0-9]+))?",
    )
]
_LATEX_COMMA = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,!])(?=[0-9]{3})")
_EXACT = Context(prec=2 * _MOST_DIGITS)  # of the longest digits, and of an exponent of two digits
_IN_LATEX = re.compile(r"(?:(?:frac|sqrt)\{?|\}\{)$")  # a number that is a part of a formula


def numbers(text: str) -> Iterator[str]:
    """Yield the numbers of a text, in canonical form; an empty text for a number that cannot be read.

    Read are signs, thousands `1,234`, `1 234` or `1.234.567`, decimals, also behind a comma where it cannot stand for
    thousands, and `1e3`; currency signs before and percent signs after a number are left out. What has digits in
    another order, such as a date, a time, a range, a ratio, a fraction or a power, is no number, nor is a part of a
    fraction or root in LaTeX: `math` reads those.
    """
    for match in _NUMBER.finditer(_LATEX_COMMA.sub(",", text)):
        before, digits = match.string[max(0, match.start() - 5) : match.start()], match["digits"]
        known = next(filter(None, (form.fullmatch(digits) for form in _GROUPED)), None)
        if known is None or len(match[0]) > _MOST_DIGITS or match["more"] or _IN_LATEX.search(before):
            yield ""
            continue
        part = known.groupdict().get("part") or ""
        whole = re.sub("[^0-9]", "", digits.removesuffix(part))
        value = _EXACT.scaleb(Decimal(f"{whole or 0}.{part or 0}"), int(match["exponent"] or 0))
        is_negative = (match["sign"] in _MINUS) != (match["inner"] in _MINUS) and value
        yield f"{'-' if is_negative else ''}{_EXACT.normalize(value):f}"


_LONGEST = 1000  # characters; what is longer is no answer, and would be read slowly
_WORKER = Path(__file__).with_name("_math_worker.py")


def _equal_formulas(pairs: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return which of these references and predictions are equal, as math-verify has it: 1/2, 0.5 and \\frac{1}{2} are.

    What takes longer than a few seconds, or needs some GB, counts as unequal. Safe in any thread.

    Raises:
        LoraxsError: math-verify cannot be run.
    """
    different = [pair for pair in dict.fromkeys(pairs) if pair[0].split() != pair[1].split()]
    asked, answers = [pair for pair in different if max(map(len, pair)) <= _LONGEST], list[bool]()
    # The file by its path and without its folder in front: it needs nothing of this package, starts fast.
    command = [sys.executable, "-P", str(_WORKER)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    while len(answers) < len(asked):
        lines = "".join(f"{json.dumps(pair)}\n" for pair in asked[len(answers) :])
        done = subprocess.run(command, input=lines, capture_output=True, text=True, env=environment, check=False)
        ready, *said = done.stdout.splitlines() or [""]
        if ready != "ready":
            reason = "".join(done.stderr.strip().splitlines()[-1:])
            raise LoraxsError(
                f"Formulas must be compared by math-verify, but it does not start: {reason}.",
                hint="install math-verify where trials are trained",
            )
        answers += [line == "true" for line in said]
        if len(answers) < len(asked):  # the process has ended on the next one, out of time or memory
            answers.append(False)
    equal = {pair for pair, is_equal in zip(asked, answers, strict=True) if is_equal}
    return equal.union(pairs).difference(set(different) - equal)


AnswerType = Literal["text", "number", "math"]
MATCH_SECONDS = 1.0  # a regular expression may take ages on a short text: what takes longer finds nothing
_BOX, _BRACE = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ ]*"), re.compile(r"\\.|[{}]", re.DOTALL)
_SENTENCE_END = ".!?,;: \t\r\n\0"


def _pattern(value: str) -> str:
    try:
        groups = regex.compile(value).groups
    except regex.error as error:
        raise ValueError(f"must be a regular expression ({error})") from None
    if not groups:
        raise ValueError("must have a group, in round brackets, that is the answer")
    return value


def _choice(value: object) -> str:
    """Return one of `one_of` as text; YAML reads an unquoted true or 1 as no text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, str) and value.strip()):
        return str(value).strip()
    raise ValueError("must be a text, a whole number, true or false")


class Extraction(Section):
    """Which part of a written text is its answer."""

    after: Text | None = None
    """The answer stands behind the last place where this text is, on the same line."""
    regex: Annotated[Text, AfterValidator(_pattern)] | None = None
    """The answer is the first group of the first match of this regular expression."""
    one_of: (
        Annotated[list[Annotated[str, PlainValidator(_choice, json_schema_input_type=str | int)]], Field(min_length=2)]
        | None
    ) = None
    """The answer is the one of these texts that comes first, as its own word."""
    form: Annotated[AnswerType, Field(alias="as")] = "text"
    """How answers are compared: as `text`, as a `number` (`$1,080.00` is `1080`), or as `math`, by math-verify."""

    # A text is compared without the white space around it; behind `after` it is the rest of that line, without the
    # marks that end a sentence. A number is the first one; where neither `after` nor `regex` says where, the last one.

    @staticmethod
    def laws(extract: Mapping[str, Any]) -> Iterator[Fault]:
        """Yield what is wrong between keys, which a space may have written otherwise than they are read."""
        if extract.get("after") is not None and extract.get("regex") is not None:
            yield ("extract",), "must have one of: after, regex, but got both."
        choices = extract.get("one_of")
        if choices is not None:
            texts = [" ".join(composed(_choice(choice)).split()) for choice in choices]
            if any(re.fullmatch(re.escape(one), other, re.IGNORECASE) for one, other in combinations(texts, 2)):
                yield ("extract", "one_of"), f"must differ in more than case and white space, but got {choices}."
            if extract.get("as", "text") != "text":
                yield ("extract", "as"), f"must be text beside one_of, but got {extract['as']}."

    def find(self, text: str, *, patient: bool = True) -> str:
        """Return the answer in a text, in canonical form; the empty text where there is none.

        Args:
            patient: Whether a text on which `regex` takes too long has no answer, and others continue.
        Raises:
            TimeoutError: `regex` takes too long on this text, and this is not patient.
        """
        part = text
        if self.regex is not None:
            try:
                match = regex.search(self.regex, text, timeout=MATCH_SECONDS)
            except TimeoutError:
                if not patient:
                    raise TimeoutError(text) from None
                match = None
            part = (match and match[1]) or ""
        elif self.after is not None:
            _, marker, behind = text.rpartition(self.after)
            behind = behind.lstrip(" \t\r\n:") if marker else ""
            part = behind if self.form == "math" else behind.partition("\n")[0]
        if self.form != "number" or self.one_of:
            return self.bare(part)
        return next(numbers(part), "") if self.after or self.regex else ["", *numbers(part)][-1]

    def bare(self, text: str) -> str:
        """Return a whole answer in the same form; the empty text if it has none."""
        if self.one_of:
            by_length = sorted(self.one_of, key=len, reverse=True)  # of two that begin alike, the longer one
            found = first_of(by_length, text)
            return "" if found is None else by_length[found]
        if self.form == "number":
            every = [*numbers(text)]  # of a text that has one alone, such as `12 apples`
            return every[0] if len(every) == 1 else ""
        if self.form == "math":  # what is in its last whole box, or its first formula
            return next(filter(_is_whole, _formulas(text)), "")
        if self.after is None:
            return text.strip(" \t\r\n\0")
        return text.strip().partition("\n")[0].rstrip(_SENTENCE_END)

    def references(self, texts: Sequence[str], *, whole: bool) -> list[str]:
        """Return what answers are compared with: the answers in these texts; an empty one where a text has none.

        Args:
            texts: Of one source. Either all have the answer where `after` or `regex` says, or all are nothing else.
            whole: These are whole answers, as the model learns to write them.
        Raises:
            TimeoutError: `regex` takes too long on this one of them.
        """
        found = [self.find(text, patient=False) for text in texts]
        if whole or any(found):
            return found
        return [self.bare(text) for text in texts]

    def settled(self, answers: Sequence[str], references: Sequence[str]) -> npt.NDArray[np.object_]:
        """Return answers, (n,), with those that are equal to their reference in another form replaced by it."""
        pairs = list(zip(references, answers, strict=True))
        if self.form == "math":
            equal = _equal_formulas([pair for pair in pairs if pair[1]])
        else:
            equal = {pair for pair in pairs if pair[1] and composed(pair[0]) == composed(pair[1])}
        return np.array([pair[0] if pair in equal else pair[1] for pair in pairs], object)


def _formulas(text: str) -> Iterator[str]:
    """Yield what is in each box of a text, the last one first: in braces, or up to the end of a formula or line; of a
    text without one, its first formula, which may go over several lines, up to a full stop or an empty line.

    A box whose brace is never closed was cut, and is passed over.
    """
    boxes = [*_BOX.finditer(text)]
    for match in reversed(boxes):
        behind = text[match.end() :]
        if not behind.startswith("{"):
            yield re.split(r"[$\n]", behind)[0].strip(" .")
        elif end := next((at for at, depth in _depths(behind) if not depth), 0):
            yield behind[1:end]
    if not boxes:
        lines: list[str] = []
        for line in text.strip(" \t\r\n\0").split("\n"):
            if not line.strip():
                break
            lines.append(line.strip())
            if lines[-1].endswith("."):
                break
        yield "\n".join(lines).removesuffix(".").rstrip()


def _depths(text: str) -> Iterator[tuple[int, int]]:
    """Yield the place of each brace that LaTeX does not print, and how many are open behind it."""
    depth = 0
    for match in _BRACE.finditer(text):
        if len(match[0]) == 1:
            depth += 1 if match[0] == "{" else -1
            yield match.start(), depth


def _is_whole(formula: str) -> bool:
    """Whether the braces of a formula are closed; else it was cut, and does not count."""
    depths = [depth for _, depth in _depths(formula)]
    return not depths or (min(depths) >= 0 and depths[-1] == 0)
