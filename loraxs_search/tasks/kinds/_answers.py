"""What of a written text is its answer, in which form answers are compared, and what may be wrong with them. Light."""

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

from loraxs_search.errors import TaskDataError, shortened
from loraxs_search.records.literals import Split
from loraxs_search.records.task import Task
from loraxs_search.tasks.encoded import EncodedRows
from loraxs_search.tasks.kinds._base import Fault
from loraxs_search.tasks.kinds._numbers import equal_formulas, first_number, last_number, only_number
from loraxs_search.tasks.kinds._section import Section, Text
from loraxs_search.tasks.metrics import first_of
from loraxs_search.tasks.rows import Rows, SourceLocation, composed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    """The answer stands behind the last place where this text is, on the same line."""
    regex: Annotated[Text, AfterValidator(_pattern)] | None = None
    """The answer is the first group of the first match of this regular expression."""
    one_of: (
        Annotated[list[Annotated[str, PlainValidator(_choice, json_schema_input_type=str | int)]], Field(min_length=2)]
        | None
    ) = None
    """The answer is the one of these texts that comes first, as its own word."""


if TYPE_CHECKING:
    ExtractSection = _Where
else:  # `as` is a word of Python
    _AS = "How answers are compared: as `text`, as a `number` (`$1,080.00` is `1080`), or as `math`, by math-verify."
    ExtractSection = create_model(
        "ExtractSection",
        __base__=_Where,
        __doc__="Which part of a written text is its answer.",
        **{"as": (AnswerType, Field("text", description=_AS))},
    )


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
        one_of: The answer is the one that comes first, as its own word, whatever its case.
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
            patient: Whether a text on which `regex` takes too long has no answer, and others continue.
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
            return first_number(part) if self.after or self.regex else last_number(part)
        return self._trimmed(part)

    def bare(self, text: str) -> str:
        """Return a whole answer in the same form; the empty text if it has none."""
        if self.one_of:
            return self._first_choice(text)
        return only_number(text) if self.form == "number" else self._trimmed(text)

    def references(self, texts: Sequence[str], *, whole: bool) -> list[str]:
        """Return what answers are compared with: the answers in these texts; an empty one where a text has none.

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
    full stop or an empty line. One whose braces are not closed was cut, and does not count."""
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


_MOST_FORMULAS = 500
_OFTEN = 0.1  # a share of answers that cannot be chance or a few odd rows


def check_answers(
    task: Task, answers: Sequence[str], blank: Sequence[int], stop: Sequence[str], place: SourceLocation
) -> None:
    """Refuse answers that cannot be learnt or written.

    Args:
        blank: The rows without an answer.
    Raises:
        TaskDataError: a row has no answer, or a stop string is in all of them.
    """
    if blank:
        raise TaskDataError(
            f"Task {task.name}: each row must have an answer, but {place.name} has rows without: {place.first(blank)}.",
            hint="write their answers, or remove the rows",
        )
    for text in stop:
        if answers and all(text in answer for answer in answers):
            raise TaskDataError(
                f"Task {task.name}: a stop string must not be in the answers, but {text!r} is in every answer"
                f" of {place.name}: no answer could be written whole.",
                hint="take it out of `generation.stop`, or out of the answers",
            )


def as_written(answers: Sequence[str], stop: Sequence[str]) -> list[str]:
    """Return answers as a model writes them: without the stop string that ends them."""
    return [next((it.removesuffix(text) for text in stop if it.endswith(text)), it) for it in answers]


def check_end_tokens(
    task: Task, rows: Rows, answers: Sequence[Sequence[int]], end: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse answers that have the end token in their text: writing would end there.

    Args:
        answers: Their tokens, without the end token that is added to each.
    Raises:
        TaskDataError: some have it.
    """
    if ended := [row for row, ids in enumerate(answers) if end in ids]:
        token, place = tokenizer.convert_ids_to_tokens(end), rows.place or SourceLocation("the request")
        raise TaskDataError(
            f"Task {task.name}: an answer must not have the end token {token} in its text, but in {place.name} those of"
            f" {place.values(rows.texts, ended)} have it.",
            hint="take it out of `answer` and of the rows: it is added to each answer",
        )


def stop_warnings(split: Split, answers: Sequence[str], stop: Sequence[str]) -> Iterator[str]:
    """Warn of stop strings that some answers hold."""
    for text in stop:
        if holding := sum(text in answer for answer in answers):
            yield (
                f"{holding:,} of {len(answers):,} {split} answers have the stop string {text!r} in them: what follows"
                " it could never be written; take it out of `generation.stop`, or out of the answers"
            )


def reference_warnings(
    split: Split, answers: Sequence[str], references: Sequence[str], extraction: Extraction
) -> Iterator[str]:
    """Warn of answers that would count as wrong if they were written word for word; of formulas, only the first ones
    are looked at, since math-verify is slow."""
    if extraction.form == "math":
        answers, references = answers[:_MOST_FORMULAS], references[:_MOST_FORMULAS]
    try:
        found = [extraction.find(answer, patient=False) for answer in answers]
    except SlowPatternError as error:
        yield (
            f"`extract.regex` takes longer than {MATCH_SECONDS:g} seconds on the {split} answer"
            f" {shortened(error.text)}: whoever writes it is counted as wrong;"
            " write it without a repetition inside a repetition, such as (a+)+"
        )
        return
    lost = found.count("")
    wrong = int(np.count_nonzero(extraction.settled(found, references) != np.array(references))) - lost
    if lost:
        yield (
            f"`extract` finds nothing in {lost:,} of {len(answers):,} {split} answers: whoever writes them is counted"
            " as wrong; correct `extract` or these answers, or remove the rows"
        )
    if wrong:
        yield (
            f"{wrong:,} of {len(answers):,} {split} answers say something else than their `reference`: whoever writes"
            " them is counted as wrong; correct or remove the rows"
        )


def length_warnings(encoded: Mapping[Split, EncodedRows], max_new_tokens: int) -> Iterator[str]:
    """Warn of answers that are longer than what may be written."""
    for split, rows in encoded.items():
        counts = rows.counts(np.arange(len(rows)))
        if long := int(np.count_nonzero(counts > max_new_tokens)):
            yield (
                f"{long:,} of {len(rows):,} {split} answers have more than max_new_tokens={max_new_tokens} tokens, the"
                f" longest {counts.max()}: raise `generation.max_new_tokens`, or they cannot be written whole"
            )


def share_warnings(metrics: Mapping[str, float], max_new_tokens: int, *, extracts: bool) -> Iterator[tuple[str, str]]:
    """Warn of written answers that often were cut, or have no answer in them; each with the metric that shows it.

    Args:
        extracts: Whether the task says where in a text its answer is.
    """
    if (cut := metrics.get("unended", 0.0)) >= _OFTEN:
        yield (
            "unended",
            f"{cut:.0%} of the answers were cut at max_new_tokens={max_new_tokens}: raise `generation.max_new_tokens`,"
            " or end answers by a text in `generation.stop`",
        )
    if (lost := metrics.get("unparsed", 0.0)) >= _OFTEN:
        yield (
            "unparsed",
            f"`extract` found nothing in {lost:.0%} of the answers, which count as wrong: let `extract` find what the"
            " model writes, or train longer"
            if extracts
            else f"{lost:.0%} of the answers are empty, and count as wrong: train longer, or give the model another"
            " `prompt`",
        )
