"""A text behind each prompt, which the model writes.

The answer's tokens are learnt, and the token that ends it. What is written is scored by the answer in it, compared with
a reference. Labels are references and predictions are answers, both texts in one form, so that equal means right; a
prediction is empty where no answer was found.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Context, Decimal
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import regex
from pydantic import AfterValidator, Field, PlainValidator

from loraxs_search.errors import LoraxsError, TaskDataError, TrialDivergedError
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.codec import Count, Split, Text, distinct
from loraxs_search.records.task import AnswerFact, Serving, Task
from loraxs_search.tasks.encoded import EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds._base import (
    Fault,
    Generated,
    GenerateRequest,
    Keys,
    Predicting,
    RequestGenerator,
    RowNumbers,
    RowScores,
    Sampling,
    Scoring,
    Section,
)
from loraxs_search.tasks.kinds._language_model import LanguageModelKind, PromptSection, Template, continued_ids
from loraxs_search.tasks.metrics import TEXT_METRICS, Values, first_of
from loraxs_search.tasks.rows import Columns, Rows, SourceLocation, blank_rows, collected, composed, raise_joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Numbers are put into one form, so that `$36`, `36.` and `36.0` are equal. Whether formulas are equal is asked of
# math-verify. It bounds its time by a signal, which only a program's main thread can have, and hosts score in other
# threads. Nor can a signal stop one huge multiplication. So the work is in a process that may be ended.

_MOST_DIGITS = 100  # longer runs of digits are no answers, and Python reads them slowly
_SPACE = "[ \N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}]"
_RUN = rf"(?:[0-9]{{1,3}}(?:{_SPACE}[0-9]{{3}}(?![0-9]))+|[0-9]+)(?:[.,:'\N{{RIGHT SINGLE QUOTATION MARK}}_][0-9]+)*"
_MINUS = ("-", "\N{MINUS SIGN}", "\N{EN DASH}")
_SIGN = f"[+{''.join(_MINUS[1:])}-]"
_CURRENCY = rf"(?:\\?[$€£¥][ ]?(?P<inner>{_SIGN})?)?"
_VULGAR = "[\u00bc-\u00be\u2150-\u215e]"  # fractions that are one character
# Digits on both sides of a hyphen are a date, a range, a telephone number or a difference.
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


def _numbers(text: str) -> Iterator[str]:
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

    def find(self, text: str) -> str:
        """Return the answer in a text, in canonical form; the empty text where there is none."""
        part = text
        if self.regex is not None:
            part = ""
            with contextlib.suppress(TimeoutError):
                part = ((match := regex.search(self.regex, text, timeout=MATCH_SECONDS)) and match[1]) or ""
        elif self.after is not None:
            _, marker, behind = text.rpartition(self.after)
            behind = behind.lstrip(" \t\r\n:") if marker else ""
            part = behind if self.form == "math" else behind.partition("\n")[0]
        if self.form != "number" or self.one_of:
            return self.bare(part)
        return next(_numbers(part), "") if self.after or self.regex else ["", *_numbers(part)][-1]

    def bare(self, text: str) -> str:
        """Return a whole answer in the same form; the empty text if it has none."""
        if self.one_of:
            by_length = sorted(self.one_of, key=len, reverse=True)  # of two that begin alike, the longer one
            found = first_of(by_length, text)
            return "" if found is None else by_length[found]
        if self.form == "number":
            every = [*_numbers(text)]  # counts only if there is one, as in `12 apples`
            return every[0] if len(every) == 1 else ""
        if self.form == "math":  # what is in its last whole box, or its first formula
            for formula in _formulas(text):
                depths = [0, *(depth for _, depth in _depths(formula))]
                if min(depths) >= 0 and not depths[-1]:  # else it was cut, and does not count
                    return formula
            return ""
        if self.after is None:
            return text.strip(" \t\r\n\0")
        return text.strip().partition("\n")[0].rstrip(_SENTENCE_END)

    def references(self, texts: Sequence[str], *, whole: bool) -> list[str]:
        """Return what answers are compared with: the answers in these texts; an empty one where a text has none.

        Args:
            texts: Of one source. Either all have the answer where `after` or `regex` says, or all are nothing else.
            whole: These are whole answers, as the model learns to write them.
        """
        found = list(map(self.find, texts))
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


_ANSWERS = "answer"  # name of the learnt texts in `Rows.extras`
_OFTEN = 0.1  # a share of answers that cannot be chance or a few odd rows


class _GenerationSection(Section):
    """How answers are written."""

    max_new_tokens: Count = 128
    """Most tokens that are written for an answer."""
    stop: Annotated[list[Text], AfterValidator(distinct)] = []  # noqa: RUF012  # pydantic copies it
    """Texts that end an answer; neither they nor what follows counts."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Above 0, tokens are drawn, with logits divided by it. Otherwise the likeliest token is taken."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Tokens are drawn from the likeliest ones that have this share of the probability together. The default is 1."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Decides, together with the prompt, which tokens are drawn. The default is 0."""


class _TextGenerationSection(PromptSection):
    """A prompt, and the answer that the model learns to write behind it."""

    answer: Text
    """What the model learns to write, a text with columns in braces."""
    reference: Text | None = None
    """What a written answer is compared with. The default is the whole `answer`."""
    extract: Extraction | None = None
    """Which part of a written text is its answer. The default is the whole text."""
    generation: _GenerationSection = _GenerationSection()
    """How long an answer may be, what ends it, and whether tokens are drawn."""


class TextGeneration(LanguageModelKind):
    """A written text. The base itself answers, a decoder: the adapter has no head.

    Labels and predictions are texts.
    """

    name = "text-generation"
    section = _TextGenerationSection
    metrics = TEXT_METRICS
    report_metric = "loss"
    most_constants = 8
    asking = frozenset({"prompt", "messages", "answer", "generation"})

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        settings = task.settings
        self.templates = {key: Template.of(settings[key]) for key in ("answer", "reference") if key in settings}
        self.extraction = Extraction.model_validate(settings.get("extract") or {})
        self.generation = own = _GenerationSection.model_validate(settings.get("generation") or {})
        columns = {f"{key}.{{{name}}}": name for key, template in self.templates.items() for name in template.columns}
        self.columns = {**self.columns, **columns}
        self.serving = Serving(
            prompt=settings.get("prompt"),
            messages=tuple((message["role"], message["content"]) for message in settings.get("messages") or ()),
            stop=tuple(own.stop),
            max_new_tokens=own.max_new_tokens,
            temperature=own.temperature or 0.0,
            top_p=own.top_p or 1.0,
        )

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        yield from super().laws(keys)
        for key in ("answer", "reference"):
            if isinstance(text := keys.get(key), str):
                try:
                    if not Template.of(text).columns:
                        yield (key,), f"must name a column in braces, as in {{answer}}, but got {text!r}."
                except ValueError as error:
                    yield (key,), f"{error}."
        if isinstance(keys.get("extract"), dict):
            yield from Extraction.laws(keys["extract"])
        generation = keys.get("generation")
        if isinstance(generation, dict) and not generation.get("temperature"):
            for key in ("top_p", "seed"):
                if generation.get(key) is not None:
                    law = "must stand beside a `temperature` above 0, without which nothing is drawn"
                    yield ("generation", key), f"{law}, but got {generation[key]}."

    # ---- rows --------------------------------------------------------------------------------------------------------
    def read(self, columns: Columns, place: SourceLocation) -> Rows:
        errors: list[TaskDataError] = []
        who, settings = f"Task {self.task.name}:", self.task.settings
        texts, extras = self.prompts(self.written_rows(self.prompt.columns, columns, place, errors))
        known = len(errors)
        filled = {
            key: [template.fill(row) for row in self.written_rows(template.columns, columns, place, errors)]
            for key, template in self.templates.items()
        }
        answers = filled["answer"]
        references = filled.get("reference", _as_written(answers, self.generation.stop))
        labels: list[str] = []
        if len(errors) == known:
            blank = blank_rows([columns.values[name] for name in self.templates["answer"].columns])
            with collected(errors):
                if blank:
                    raise TaskDataError(
                        f"{who} each row must have an answer, but {place.name} has rows without: {place.first(blank)}.",
                        hint="write their answers, or remove the rows",
                    )
            with collected(errors):
                labels = self.extraction.references(references, whole="reference" not in settings)
                if lost := [row for row, label in enumerate(labels) if not label and row not in blank]:
                    what = "reference" if "reference" in settings else "answer"
                    raise TaskDataError(
                        f"{who} `extract` must find something in each row's {what}, but in {place.name} it finds"
                        f" nothing in {place.values(references, lost)}.",
                        hint="correct `extract` or `reference`, or correct or remove the rows; a `regex` that takes"
                        f" longer than {MATCH_SECONDS:g} seconds finds nothing",
                    )
        raise_joined(self.task, errors)
        return Rows(texts, None, np.array(labels, object), {**extras, _ANSWERS: answers})

    def warnings(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[str]:
        if set(self.templates["answer"].columns) <= set(self.prompt.columns):
            yield "each column of `answer` is in the prompt too, which gives the answer away"
        for split, own in rows.items():
            answers = _as_written(own.extras[_ANSWERS], self.generation.stop)
            for text in self.generation.stop:
                if holding := sum(text in answer for answer in answers):
                    yield (
                        f"{holding:,} of {len(answers):,} {split} answers have the stop string {text!r} in them: what"
                        " follows it could never be written; take it out of `generation.stop`, or out of the answers"
                    )
        most = self.generation.max_new_tokens
        for split, tokens in encoded.items():
            counts = tokens.counts(np.arange(len(tokens)))
            if long := int(np.count_nonzero(counts > most)):
                yield (
                    f"{long:,} of {len(tokens):,} {split} answers have more than max_new_tokens={most} tokens, the"
                    f" longest {counts.max()}: raise `generation.max_new_tokens`, or they cannot be written whole"
                )

    def answer_facts(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[AnswerFact]:
        counts = {split: np.unique(own.labels, return_counts=True)[1] for split, own in rows.items()}
        yield AnswerFact("different", {split: len(own) for split, own in counts.items()})
        yield AnswerFact("commonest", {split: int(own.max()) for split, own in counts.items()})
        tokens = {split: own.counts(np.arange(len(own))) for split, own in encoded.items()}
        yield AnswerFact("answer tokens", {split: int(np.median(own)) for split, own in tokens.items()})
        yield AnswerFact("longest", {split: int(own.max()) for split, own in tokens.items()})

    # ---- tokens ------------------------------------------------------------------------------------------------------
    def tokenizer_faults(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
        faults = [*super().tokenizer_faults(tokenizer)]
        yield from faults
        generation, context, length = self.generation, tokenizer.model_max_length, self.task.max_length
        if not faults and length <= context < length + generation.max_new_tokens:
            yield (
                f"`max_length` and `generation.max_new_tokens` together must be at most {context} with this base model,"
                f" but got max_length={length} and max_new_tokens={generation.max_new_tokens}.",
                "lower one of them, or choose another base model",
            )
        elif not faults and not generation.stop and self.prompt.end_id(tokenizer) is None:
            yield (
                "`generation.stop` must name a text where the base model has no end token, since no answer would ever"
                " end.",
                "add a text that follows each answer, also to `answer`, or choose another base model",
            )

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
        if _ANSWERS not in rows.extras:
            return self.joined(rows, tokenizer, None)
        ends = self.end_ids(tokenizer)
        answers = continued_ids(rows.extras[_ANSWERS], tokenizer)
        for end in ends:
            if ended := [row for row, ids in enumerate(answers) if end in ids]:
                token, place = tokenizer.convert_ids_to_tokens(end), rows.place or SourceLocation("the request")
                raise TaskDataError(
                    f"Task {self.task.name}: an answer must not have the end token {token} in its text, but in"
                    f" {place.name} those of {place.values(rows.texts, ended)} have it.",
                    hint="take it out of `answer` and of the rows: it is added to each answer",
                )
        return self.joined(rows, tokenizer, [[*ids, *ends] for ids in answers])

    # ---- scoring -----------------------------------------------------------------------------------------------------
    def score(self, data: RowSource, split: Split, rows: RowNumbers) -> Scoring:
        return (yield from self._scored(data, split, rows, data.labels(split)[rows]))

    def base_alone(self, data: RowSource, split: Split, rows: RowNumbers, shots: int) -> Scoring:
        asked = self.with_examples(data, data.encoded(split).take(rows), shots, self.generation.max_new_tokens)
        return (yield from self._scored(data, asked, np.arange(len(asked)), data.labels(split)[rows]))

    def asked_as(self, trained: Task) -> Task:
        """Have the answer looked for where the adapter writes it, and compared in the form that this task says."""
        task = super().asked_as(trained)
        own, held = trained.settings.get("extract") or {}, self.task.settings.get("extract") or {}
        extract = {key: own[key] for key in ("after", "regex") if key in own}
        extract |= {key: held[key] for key in ("one_of", "as") if key in held}
        if task == self.task and extract == held:
            return task
        others = {key: value for key, value in task.settings.items() if key != "extract"}
        # What is written ends before the stop string that the answer ends with.
        literal, answer = self.templates["answer"].parts[-1][0], self.task.settings["answer"]
        (kept,) = _as_written([literal], self.generation.stop)
        stop = literal[len(kept) :].replace("{", "{{").replace("}", "}}")
        settings = {"reference": str(answer.removesuffix(stop)), **others}
        return replace(task, settings=settings | ({"extract": extract} if extract else {}))

    def predict(self, data: RowSource, questions: EncodedRows, shown: Sequence[str]) -> Predicting:
        written = yield from self._write(data, questions)
        return [Prediction(row, text.strip(), None) for row, text in zip(shown, written.texts, strict=True)]

    def _scored(self, data: RowSource, source: Split | EncodedRows, rows: RowNumbers, references: Values) -> Scoring:
        """Yield what scores these rows of a source and, where reports need answers, what writes them."""
        scores = yield from self.score_tokens(data, source, rows)
        if not self.reports_answers:
            return scores
        asked = data.encoded(source).take(rows)
        prompts = asked.prompts_alone()
        if asked.extras is not None:  # no worked examples stand before them
            pairs = [(asked.extras.row(number), prompts.row(number)) for number in range(len(asked))]
            prompts = Ragged.of([longer if len(longer) else own for longer, own in pairs], np.int32)
        written = yield from self._write(data, EncodedRows(prompts))
        answers = self.extraction.settled([self.extraction.find(text) for text in written.texts], references.tolist())
        return RowScores(answers, scores.losses, scores.counts, scores.correct, written.ended)

    def _write(self, data: RowSource, prompts: EncodedRows) -> RequestGenerator[Generated]:
        settings, sampling = self.generation, None
        if settings.temperature:
            sampling = Sampling(settings.seed or 0, settings.temperature, settings.top_p or 1.0)
        stop, ends = tuple(settings.stop), self.end_ids(data.tokenizer)
        written: Generated = yield GenerateRequest(
            prompts, np.arange(len(prompts)), settings.max_new_tokens, stop, sampling, ends
        )
        if np.isnan(written.margins).any():
            raise TrialDivergedError("Logits must be finite, but some are NaN or infinite.")
        return written

    def score_warnings(self, metrics: Mapping[str, float]) -> Iterator[str]:
        if (cut := metrics.get("unended", 0.0)) >= _OFTEN:
            yield (
                f"{cut:.0%} of the answers were cut at max_new_tokens={self.generation.max_new_tokens}: raise"
                " `generation.max_new_tokens`, or end answers by a text in `generation.stop`"
            )
        if (lost := metrics.get("unparsed", 0.0)) >= _OFTEN:
            yield (
                f"`extract` found nothing in {lost:.0%} of the answers, which count as wrong: let `extract` find what"
                " the model writes, or train longer"
                if "extract" in self.task.settings
                else f"{lost:.0%} of the answers are empty, and count as wrong: train longer, or give the model"
                " another `prompt`"
            )


def _as_written(answers: Sequence[str], stop: Sequence[str]) -> list[str]:
    """Return answers as a model writes them: without the stop string that ends them."""
    return [next((it.removesuffix(text) for text in stop if it.endswith(text)), it) for it in answers]
