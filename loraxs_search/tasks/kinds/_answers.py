"""What of a written text is its answer, and in which form answers are compared. Light."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import regex
from pydantic import AfterValidator, Field, PlainValidator, create_model

from loraxs_search.tasks._texts import composed
from loraxs_search.tasks.kinds._base import Fault
from loraxs_search.tasks.kinds._math_equality import equal_formulas
from loraxs_search.tasks.kinds._numbers import first_number, last_number, only_number
from loraxs_search.tasks.kinds._section import Section, Text
from loraxs_search.tasks.kinds._words import first_of

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


class _Where(Section):
    after: Text | None = None
    regex: Annotated[Text, AfterValidator(_pattern)] | None = None
    one_of: Annotated[list[Annotated[str, PlainValidator(_choice)]], Field(min_length=2)] | None = None


if TYPE_CHECKING:
    ExtractSection = _Where
else:  # `as` is a word of Python
    ExtractSection = create_model("ExtractSection", __base__=_Where, **{"as": (AnswerType, "text")})


def extract_laws(extract: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong between the keys of `extract:`."""
    if extract.get("after") is not None and extract.get("regex") is not None:
        yield ("extract",), "must have one of: after, regex, but got both."
    choices = extract.get("one_of")
    if choices is not None:
        texts = [" ".join(composed(_choice(choice)).split()) for choice in choices]
        if any(re.fullmatch(re.escape(one), other, re.IGNORECASE) for one, other in combinations(texts, 2)):
            yield ("extract", "one_of"), f"must differ in more than case and white space, but got {choices}."
        if extract.get("as", "text") != "text":
            yield ("extract", "as"), f"must be text beside one_of, but got {extract['as']}."


class SlowPatternError(Exception):
    """A regular expression takes too long on a text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


@dataclass(frozen=True)
class Extraction:
    """Which part of a text is its answer, and in which form.

    Args:
        after: The answer is behind the last place where this stands.
        regex: The answer is the first group of the first match.
        one_of: The answer is the one that comes first, as a word of its own, whatever its case.
        form: `text`: without the white space around it; behind `after` it is the rest of that line, without the marks
            that end a sentence. `number`: the first one; where neither `after` nor `regex` says where, the last one;
            see `_numbers`. `math`: what math-verify holds equal is equal.
    """

    after: str | None = None
    regex: str | None = None
    one_of: tuple[str, ...] = ()
    form: AnswerType = "text"

    @classmethod
    def of(cls, extract: Mapping[str, Any] | None) -> Extraction:
        """Read the keys of `extract:`; None is the whole text."""
        keys = extract or {}
        return cls(keys.get("after"), keys.get("regex"), tuple(keys.get("one_of") or ()), keys.get("as", "text"))

    def find(self, text: str, *, patient: bool = True) -> str:
        """Return the answer in a text, in canonical form; the empty text where there is none.

        Args:
            patient: Whether a text on which `regex` takes too long has no answer, and others go on.
        Raises:
            SlowPatternError: `regex` takes too long, and this is not patient.
        """
        try:
            part = self._part(text)
        except SlowPatternError:
            if not patient:
                raise
            part = None
        if part is None:
            return ""
        if self.one_of:
            return self._first_choice(part)
        if self.form == "number":
            return last_number(part) if part is text else first_number(part)
        return self._trimmed(part)

    def bare(self, text: str) -> str:
        """Return an answer that stands alone, in the same form; the empty text where it is none."""
        if self.one_of:
            return self._first_choice(text)
        return only_number(text) if self.form == "number" else self._trimmed(text)

    def references(self, texts: Sequence[str], *, whole: bool) -> list[str]:
        """Return what answers are held against: the answers in these texts; an empty one where a text has none.

        Args:
            texts: Of one source. Either all have the answer where `after` or `regex` says, or all are nothing else.
            whole: These are whole answers, as the model learns to write them.
        Raises:
            SlowPatternError: `regex` takes too long on one of them.
        """
        found = [self.find(text, patient=False) for text in texts]
        if whole or any(found):
            return found
        return [self.bare(text) for text in texts]

    def settled(self, answers: Sequence[str], references: Sequence[str]) -> npt.NDArray[np.object_]:
        """Return answers, (n,), with those that are equal to their reference in another form replaced by it."""
        equal = equal_formulas if self.form == "math" else _look_alike
        pairs = zip(answers, references, strict=True)
        return np.array([ref if own and equal(ref, own) else own for own, ref in pairs], object)

    def _part(self, text: str) -> str | None:
        """Return the part of a text where its answer is; the text itself where nothing says."""
        if self.regex is not None:
            try:
                match = regex.search(self.regex, text, timeout=MATCH_SECONDS)
            except TimeoutError:
                raise SlowPatternError(text) from None
            return None if match is None else match[1]
        if self.after is None:
            return text
        _, marker, behind = text.rpartition(self.after)
        behind = behind.lstrip(" \t\r\n:")
        if self.form != "math":
            behind = behind.partition("\n")[0]
        return behind if marker else None

    def _first_choice(self, text: str) -> str:
        by_length = sorted(self.one_of, key=len, reverse=True)  # of two that begin alike, the longer one
        found = first_of(by_length, text)
        return "" if found is None else by_length[found]

    def _trimmed(self, text: str) -> str:
        if self.form == "math":
            return _formula(text)
        if self.after is None:
            return text.strip(" \t\r\n\0")
        return text.strip().partition("\n")[0].rstrip(_SENTENCE_END)


def _look_alike(reference: str, answer: str) -> bool:
    return composed(reference) == composed(answer)


def _formula(text: str) -> str:
    """Return the formula of a text: what is in its last box, or its first one, which may go over several lines, up to a
    full stop or an empty line. One whose braces are not closed was cut, and is none."""
    formulas = _boxed(text) if _BOX.search(text) else iter([_first_formula(text)])
    return next(filter(_is_whole, formulas), "")


def _boxed(text: str) -> Iterator[str]:
    """Yield what is in each box of a text, the last one first: in braces, or up to the end of a formula or line.

    One whose brace is never closed was cut, and is passed over.
    """
    for match in reversed([*_BOX.finditer(text)]):
        behind = text[match.end() :]
        if not behind.startswith("{"):
            yield re.split(r"[$\n]", behind)[0].strip(" .")
        elif end := next((at for at, depth in _depths(behind) if not depth), 0):
            yield behind[1:end]


def _depths(text: str) -> Iterator[tuple[int, int]]:
    """Yield the place of each brace that LaTeX does not print, and how many are open behind it."""
    depth = 0
    for match in _BRACE.finditer(text):
        if len(match[0]) == 1:
            depth += 1 if match[0] == "{" else -1
            yield match.start(), depth


def _is_whole(formula: str) -> bool:
    depths = [depth for _, depth in _depths(formula)]
    return not depths or (min(depths) >= 0 and depths[-1] == 0)


def _first_formula(text: str) -> str:
    lines: list[str] = []
    for line in text.strip(" \t\r\n\0").split("\n"):
        if not line.strip():
            break
        lines.append(line.strip())
        if lines[-1].endswith("."):
            break
    return "\n".join(lines).removesuffix(".").rstrip()
