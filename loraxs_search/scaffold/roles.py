"""A file's rows, and what its columns are for: guessed, where `Choices` does not say it; what is wrong with answers."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import category

from loraxs_search.errors import TaskDataError, UsageError, unknown_name
from loraxs_search.home import disk_faults, meant_file
from loraxs_search.tasks.files import SEPARATORS, file_format, label_names, read_columns
from loraxs_search.tasks.kinds import finite_number, items_of
from loraxs_search.tasks.rows import DATA_ENDINGS, SEPARATOR, TEXT_NAMES, MalformedFileError, composed

# ---- the rows ----
_MAX_CLASSES = 50  # more need many rows each
_MANY_ROWS = 20  # so many rows for each different value, and they are classes
_DATE = re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}([T ]\d{1,2}:\d{2}.*)?")
_PADDED = re.compile(r"[-+]?0\d")  # a name, such as a postcode
_NEVER_MEANT = ("nan", "null", "#n/a", "<na>", "nat")  # what programs write for a value that is missing


def is_number(text: str) -> bool:
    """Whether a text is a finite number without zeros before it."""
    return finite_number(text) is not None and not _PADDED.match(text)


class _Column:
    """The values of a column, one a row, and what they look like."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    @cached_property
    def texts(self) -> list[str]:
        """The values as texts that look alike, without the space around them; nothing for None."""
        return ["" if value is None else composed(str(value).strip()) for value in self.values]

    @cached_property
    def counts(self) -> Counter[str]:
        """How many rows have each text; empty ones do not count."""
        return Counter(filter(None, self.texts))

    @cached_property
    def lists(self) -> list[list[Any]]:
        """The items of each value, where all are lists, maybe in JSON's form as a .csv has them; else nothing."""
        items = list(map(items_of, self.values))
        return items if all(isinstance(own, list) for own in items) else []

    @cached_property
    def label_sets(self) -> list[list[str]]:
        """The labels of each value, where all are lists of plain values, or texts with `|` between; else nothing."""
        items = ("" if value is None else items_of(value) for value in self.values)
        rows = [it.split(SEPARATOR) if isinstance(it, str) else it for it in items]
        if not all(isinstance(own, list) and not any(isinstance(it, list | dict) for it in own) for own in rows):
            return []
        return [list(dict.fromkeys(name for it in own if (name := composed(str(it).strip())))) for own in rows]

    @cached_property
    def has_label_sets(self) -> bool:
        """Whether values are lists of few different labels, or texts with `|` between such."""
        counts = Counter(name for own in self.label_sets for name in own)
        is_listed = bool(self.lists) or any(len(own) > 1 for own in self.label_sets)
        return is_listed and 1 < len(counts) <= min(_MAX_CLASSES, counts.total() // _FEW_REPEATS)

    @cached_property
    def is_text(self) -> bool:
        """Whether the values are texts, neither numbers nor dates nor lists; also of an empty column."""
        filled = [value for value in self.values if value is not None and str(value).strip()]
        if not all(isinstance(value, str) for value in filled):
            return False
        lists = all(isinstance(own, list) and len(own) > 1 for own in map(items_of, filled))
        return not filled or not (lists or self.is_date or all(finite_number(value) is not None for value in filled))

    @property
    def is_date(self) -> bool:
        return bool(self.counts) and all(map(_DATE.fullmatch, self.counts))

    @property
    def has_choices(self) -> bool:
        """Whether each value is a list of several items."""
        return bool(self.lists) and all(len(own) > 1 for own in self.lists)

    @property
    def has_few(self) -> bool:
        """Whether the values are few enough to be classes."""
        number, rows = len(self.counts), len(self.values)
        return number <= min(_MAX_CLASSES, max(2, rows // 4)) or number * _MANY_ROWS <= rows

    @cached_property
    def is_mostly_numbers(self) -> bool:
        """Whether values are numbers, but for so few that these are mistakes, and for those that are missing."""
        given = {text: count for text, count in self.counts.items() if text.lower() not in _NEVER_MEANT}
        odd = sum(count for text, count in given.items() if not is_number(text))
        return odd < len(given) and odd <= (max(1, len(self.values) // 100) if len(self.values) >= _MANY_ROWS else 0)


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Args:
        name: What people call it.
        columns: Of a file with separated values, all values are text.
        lines: The line that each row begins in, or what a DataFrame's index calls it; None if rows have neither.
        path: The file that a task reads.
        is_changed: Whether its rows are no longer those of the file.
        is_separated: Whether it is a file of separated values.
        is_frame: Whether it is a DataFrame.
        remark: What is unusual about it.
    """

    name: str
    columns: dict[str, _Column]
    lines: list[Any] | None
    path: Path
    is_changed: bool = False
    is_separated: bool = False
    is_frame: bool = False
    remark: str = ""

    @property
    def num_rows(self) -> int:
        return next((len(column.values) for column in self.columns.values()), 0)

    def places(self, rows: Sequence[int]) -> str:
        """Return where rows stand, of many the first ones."""
        word = "row" if self.lines is None or self.is_frame else "line"
        shown = (f"{word} {row + 1 if self.lines is None else self.lines[row]}" for row in rows[:_MAX_LISTED])
        return ", ".join(shown) + (f" and {len(rows) - _MAX_LISTED} more" if len(rows) > _MAX_LISTED else "")

    def places_of(self, column: str, text: str) -> str:
        """Return where the rows stand that have a text in a column."""
        return self.places([row for row, own in enumerate(self.columns[column].texts) if own == text])

    def plain_text(self) -> str:
        """Return the rows as lines of JSON, or separated by commas where the file has separated values."""
        rows = zip(*(column.values for column in self.columns.values()), strict=True)
        if not self.is_separated:
            lines = (dict(zip(self.columns, row, strict=True)) for row in rows)
            return "".join(f"{json.dumps(line, ensure_ascii=False, default=str)}\n" for line in lines)
        text = io.StringIO(newline="")
        csv.writer(text).writerows([list(self.columns), *rows])
        return text.getvalue()


def read_table(path: Path) -> Table:
    """Read all columns of a file; of separated values, columns without a name, as pandas' index, are left out.

    Raises:
        UsageError: there is no such file, or its ending is unknown.
        TaskDataError: it is not what it seems to be, or holds no row.
    """
    if not path.is_file():
        raise UsageError(
            f"{meant_file(path)}The data must be a file, but there is no {path}.",
            hint=f"name a file that ends in one of {', '.join(DATA_ENDINGS)}",
        )
    with disk_faults(path, "the data"):
        content = path.read_bytes()
    try:
        ending = file_format(path)
    except MalformedFileError as error:
        raise UsageError(f"A data file {error.message}, but got {path}.", hint=error.hint) from error
    is_separated = ending in (".csv", ".tsv")
    try:
        seen = read_columns(path, content, [])
        if seen.available and not any(seen.available):
            law = "must name its columns in its first line, but that is empty"
            raise MalformedFileError(law, hint="name them there")
        read = read_columns(path, content, [name for name in seen.available if name])
        usual = "\t" if ending == ".tsv" else ","
        remarks = [f"{read.encoding} instead of UTF-8"] if read.encoding else []
        is_other = is_separated and read.separator != usual
        remarks += [f"{SEPARATORS[read.separator]} instead of {SEPARATORS[usual]}"] if is_other else []
    except MalformedFileError as error:
        raise TaskDataError(f"{path} {error.message}.", hint=error.hint) from error
    columns = {name: _Column(values) for name, values in read.values.items()}
    for name, own in columns.items():
        if ending == ".parquet" and (names := label_names(path, name)):
            columns[name] = _Column([_named(value, names) for value in own.values])
    table = Table(str(path), columns, read.lines, path, is_separated=is_separated, remark=" and ".join(remarks))
    if not table.num_rows:
        raise TaskDataError(f"{path} must have a row at least, but has none.", hint="the first line names the columns")
    return table


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return the name that the data give to an id, or to each of a list; other values as they are."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if type(value) is int and 0 <= value < len(names) else value


# ---- what is known and what is guessed ----
CLASSES, LEVELS, SETS, NUMBERS = "sequence-classification", "ordinal", "multi-label", "regression"
TAGS, WRITING, CHOOSING = "token-classification", "text-generation", "multiple-choice"
_KINDS = (CLASSES, LEVELS, SETS, NUMBERS, TAGS, WRITING, CHOOSING)
_LABELLED = (CLASSES, LEVELS, SETS)  # kinds whose labels are named


@dataclass(frozen=True)
class Choices:
    """What is known; None is guessed.

    Args:
        text: Columns that an answer is given to.
        label: The column with answers.
        labels: The answers that there are, in the order of their ids.
        drop_empty: Leave out rows without a text or an answer.
        test: A file of test rows.
        question: What the task answers, as decisions ask it.
    """

    name: str | None = None
    kind: str | None = None
    text: tuple[str, ...] | None = None
    label: str | None = None
    labels: tuple[str, ...] | None = None
    metric: str | None = None
    base: str | None = None
    max_length: int | None = None
    drop_empty: bool = False
    test: str | None = None
    question: str | None = None


class UndecidedError(UsageError):
    """Something cannot be guessed: the user must say it.

    Args:
        option: The field of `Choices`, and the command line's option, that says it.
        possible: What may be said, likeliest first; empty where that is open.
        default: What Enter stands for on a terminal; empty if none of these is likely.
    """

    def __init__(self, option: str, message: str, possible: Sequence[str] = (), *, default: str | None = None) -> None:
        known = f" (one of: {', '.join(possible)})" if possible else ""
        super().__init__(message, hint=f"say it with --{option}{known}")
        self.option, self.possible = option, tuple(possible)
        self.default = next(iter(possible), "") if default is None else default


@dataclass(frozen=True)
class Roles:
    """What columns are for.

    Args:
        texts: Columns that are read, in order.
        label: The column with answers.
        options: The column with lists to choose from, of multiple choice; or a column for each option.
        option_names: What the answers call options; empty if they are letters, numbers from 0, or the options' texts.
        label_counts: Names of classes, in id order, with the rows that have each.
        unused: Columns with texts that are not read, unless the columns were chosen.
    """

    kind: str
    texts: tuple[str, ...]
    label: str
    options: str | tuple[str, ...] | None = None
    option_names: tuple[str, ...] = ()
    label_counts: Mapping[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of classes, in id order."""
        return tuple(self.label_counts)

    @property
    def option_columns(self) -> tuple[str, ...]:
        return (self.options,) if isinstance(self.options, str) else self.options or ()


_LABELS = (
    *("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "gold", "y", "score"),
    *("rating", "stars", "answer", "answerkey", "correct", "output", "completion", "response"),
)
_WORDS = ("tokens", "words", "text", "sentence")
_TAG = re.compile(r"O|[BI]-\S+")
_OPTION = re.compile(r"((?:option|opt|choice|answer|ending|sol)_?)?([a-z]|\d)")  # one of several columns of options
_OPTIONS = ("options", "choices", "answers", "endings", "candidates", "alternatives", "completions")
_PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text_a", "text_b")),
    *(("context", "question"), ("passage", "question"), ("instruction", "input")),
    *(("text1", "text2"), ("query", "passage"), ("question", "sentence"), ("query", "document")),
)
_WRITTEN = ("completion", "response", "output", "answer", "target", "summary", "translation")
_MISSING = (*_NEVER_MEANT, "none", "n/a", "na", "?", "-")  # the others may be a class, if many rows have them
_MANY_CLASSES = 20  # no command lists more
_FEW_REPEATS = 3  # so many, and they may rather be classes than answers in words
_FEW_NUMBERS = 12  # whole numbers with no more different values are taken for classes
_FEW_IDS = 20  # the same of numbers from 0 without a gap, as programs number classes
_LEAST_LEVELS, _MOST_LEVELS = 3, 10  # whole numbers at equal distances, so many of them, are levels
_SCALES = ("score", "rating", "stars", "grade", "level", "severity", "priority", "relevance")  # which begin at 0 too
_FEW_PAIRS = 3  # more names that look alike are no mistakes
_MAX_LISTED = 5
_DIGITS = re.compile(r"\d+")
_GROUPED = re.compile(r"[-+]?[$€£¥]\s?\d[\d,.]*|[-+]?\d{1,3}(,\d{3})+(\.\d+)?\s?[$€£¥%]?")  # `$1,200`
_PLAIN = re.compile(r"[-+]?(\d+\.?0*|\d*\.\d*[1-9])", re.ASCII)


def _name(column: str) -> str:
    return column.lower().replace(" ", "_")


# ---- columns ---------------------------------------------------------------------------------------------------------
def guess_roles(table: Table, choices: Choices) -> tuple[Roles, Table]:
    """Return what the columns of a table are for, and the table as the choices clean it.

    Raises:
        UndecidedError: that cannot be known.
        UsageError: a column that was named is not there, or several choices do not go together.
        TaskDataError: texts or labels are missing, or look misspelt.
    """
    _check_choices(table, choices)
    asked = [choices.label] if choices.label else list(table.columns)
    tagged = [
        name
        for name in asked
        if (rows := table.columns[name].lists)
        and all(isinstance(tag, str) and _TAG.fullmatch(tag) for tags in rows for tag in tags)
    ]
    if choices.kind == TAGS or (choices.kind is None and choices.text is None and tagged):
        return _tagged(table, tagged, choices), table
    # Lists with another name, such as tags, are options only where the kind says so.
    lists = [name for name, column in table.columns.items() if column.has_choices]
    named = [name for name in lists if _name(name).rpartition("_")[2] in _OPTIONS]
    options = next(iter(named or (lists if choices.kind == CHOOSING else ())), None)
    if choices.kind is None and choices.labels is not None and options is not None:
        message = f"Column {options!r} has options, but --labels names classes."
        raise UndecidedError("kind", message, (CLASSES, CHOOSING))
    kind = choices.kind or (CLASSES if choices.labels is not None else None)
    roles = None
    if kind in (None, CHOOSING) and options is None and (found := _option_columns(table, choices)) is not None:
        label, columns, names = found
        roles = Roles(CHOOSING, choices.text or (_text(table, (label, *columns)),), label, columns, names)
    elif kind == CHOOSING or (kind is None and options is not None):
        if options is None:
            message = "A multiple-choice task needs a column of lists, or a column for each option, but there is none."
            raise UndecidedError("kind", message, _KINDS, default="")
        label = choices.label or _label(table, choices, but=(options,))
        # Counted from 1 if the last one is right in some row, and 0 in none.
        given, offered = table.columns[label].texts, table.columns[options].lists
        from_1 = tuple(map(str, range(1, len(offered[0]) + 1)))
        is_from_1 = {*map(len, offered)} == {len(from_1)} and from_1[-1] in given and {*given} <= {*from_1, ""}
        are_texts = all(own in map(str, them) for own, them in zip(given, offered, strict=True) if own)
        names = from_1 if is_from_1 and not are_texts else ()
        roles = Roles(CHOOSING, choices.text or (_text(table, (label, options)),), label, options, names)
    if roles is not None:
        table = _without_gaps(table, roles.texts, label, choices)
    else:
        label = choices.label or _label(table, choices)
        lower = {_name(name): name for name in table.columns if name != label}
        pair = next(((lower[one], lower[two]) for one, two in _PAIRS if one in lower and two in lower), None)
        texts = choices.text or pair or (_text(table, (label,)),)
        table = _without_gaps(table, texts, label, choices)
        if kind is None or (choices.kind is None and table.columns[label].has_label_sets):
            kind = _guess_kind(table, label)
        if kind != WRITING and len(texts) > 2:
            raise UsageError(
                f"`--text` must name one column, or two for pairs of texts, but got {','.join(texts)}.",
                hint="join them into one column, or use --kind text-generation",
            )
        answers = _flat(table, label) if kind == SETS else table
        _check_answers(answers, () if kind == SETS else texts, label, kind, choices)
        counts = _classes(answers, label, choices, kind) if kind in _LABELLED else {}
        roles = Roles(kind, texts, label, label_counts=counts)
    used = (*roles.texts, label, *roles.option_columns)
    unused = (name for name, own in table.columns.items() if name not in used and any(own.values) and own.is_text)
    return replace(roles, unused=() if choices.text else tuple(unused)), table


def _check_choices(table: Table, choices: Choices) -> None:
    usual = {*_LABELS, *TEXT_NAMES, *(name for pair in _PAIRS for name in pair)}
    is_given = table.lines is None or table.is_frame or choices.text or choices.label
    is_row = not is_given and not any(_name(name) in usual for name in table.columns)
    if is_row and (values := [name for name, column in table.columns.items() if name in column.values]):
        raise TaskDataError(
            f"The first line of {table.name} must name the columns, but looks like a row:"
            f" {values[0]!r} is also a value below it.",
            hint="name the columns in the first line; or confirm these names with --text and --label",
        )
    named = [("text", name) for name in choices.text or ()] + ([("label", choices.label)] if choices.label else [])
    for option, name in named:
        if name not in table.columns:
            raise UsageError(unknown_name(f"--{option}", name, table.columns), hint=f"columns of {table.name}")
    if choices.label is not None and choices.label in (choices.text or ()):
        raise UsageError(
            f"`--label` must be another column than `--text`, but both are {choices.label!r}.",
            hint=f"columns of {table.name}: {', '.join(table.columns)}",
        )
    if choices.kind is not None and choices.kind not in _KINDS:
        raise UsageError(unknown_name("--kind", choices.kind, _KINDS), hint="leave it out to have it guessed")
    if len(table.columns) < 2:
        raise TaskDataError(
            f"{table.name} must have a column with texts and one with answers, but has only"
            f" {', '.join(map(repr, table.columns)) or 'none'}.",
            hint="add the other one; fields of a .csv stand between commas, semicolons, tabs or bars",
        )
    if choices.labels is not None and choices.kind not in (None, *_LABELLED, TAGS):
        raise UsageError(
            f"`--labels` must name the labels of {', '.join(_LABELLED)} or {TAGS}, but --kind is {choices.kind}.",
            hint="leave out --labels, or change --kind",
        )


def _tagged(table: Table, tagged: Sequence[str], choices: Choices) -> Roles:
    """Return which column has the words and which their tags."""
    if choices.drop_empty:
        raise UsageError(f"`--drop-empty` must not go with {TAGS}.", hint="correct the file itself")
    label = next(iter(tagged), None)
    others = [name for name, column in table.columns.items() if name != label and column.lists]
    words = next(iter(choices.text or [name for name in others if _name(name) in _WORDS] or others), None)
    if label is None or words is None:
        message = f"{TAGS} needs a column with lists of words and one with lists of their IOB2 tags."
        raise UndecidedError("label" if label is None else "text", message)
    tags = table.columns[label].lists
    tokens = table.columns[words].lists or [[]] * len(tags)
    if odd := [row for row, (own, its) in enumerate(zip(tokens, tags, strict=True)) if len(own) != len(its) or not own]:
        raise TaskDataError(
            f"Each row of {table.name} must have a tag for each word, but {table.places(odd)} has not.",
            hint="correct or remove the rows",
        )
    counts = Counter(str(tag) for row in tags for tag in row)
    names = choices.labels or sorted(counts, key=lambda tag: (tag != "O", tag.partition("-")[2], tag))
    if unknown := counts.keys() - set(names):
        raise UsageError(unknown_name("--labels", min(unknown), names), hint="name every tag of the file")
    return Roles(TAGS, (words,), label, label_counts={name: counts[name] for name in names})


def _label(table: Table, choices: Choices, but: tuple[str, ...] = ()) -> str:
    """Return the column with the answers: one of a usual name, else the only one that has few values, or numbers."""
    columns = {
        name: column
        for name, column in table.columns.items()
        if name not in (*but, *(choices.text or ()))
        and (
            column.has_label_sets
            or not (column.is_date or column.has_choices or any(isinstance(it, list | dict) for it in column.values))
        )
    }
    if not columns:
        raise TaskDataError(
            f"{table.name} must have a column with answers beside its texts, but has none.", hint="add that column"
        )
    names = list(columns)
    numbers = []
    for name, column in columns.items():  # whole numbers that all differ tell rows apart, and are no answers
        is_whole = all(float(text).is_integer() for text in column.counts if is_number(text))
        tells_apart = is_whole and len(column.counts) == len(column.values)
        if column.is_mostly_numbers and not tells_apart:
            numbers.append(name)
    if choices.kind == NUMBERS:
        names = numbers or [name for name in names if not columns[name].is_text] or names
    if named := [name for wanted in _LABELS for name in names if _name(name) == wanted]:
        return named[0]
    several = (name for name in names if len(set(map(str, columns[name].values))) > 1)
    few = [name for name in several if columns[name].has_few or columns[name].has_label_sets]
    likely = list(dict.fromkeys((*few, *numbers))) if choices.kind != NUMBERS else names
    if len(likely) == 1 or (choices.text and len(names) == 1):
        return (likely or names)[0]
    message = f"The column with answers must be known, but it may be any of {', '.join(likely or names)}."
    raise UndecidedError("label", message, likely or names, default="")


def _option_columns(table: Table, choices: Choices) -> tuple[str, tuple[str, ...], tuple[str, ...]] | None:
    """Return the column with answers, those with an option each, and the options' names; None if no columns are such.

    They are called A, B, ... or option1, option2, ..., and each answer says which one is right. The names are empty if
    a task knows them by itself.
    """
    runs: dict[str, list[str]] = {}
    for name in table.columns:
        if (match := _OPTION.fullmatch(_name(name))) and name not in (choices.text or ()):
            run = runs.setdefault(match[1] or "", [])
            if (not run and match[2] in "a01") or (run and ord(match[2]) == ord(run[-1][-1].lower()) + 1):
                run.append(name)
    for columns in (tuple(run) for run in runs.values() if len(run) > 1):
        letters, number = tuple(string.ascii_uppercase[: len(columns)]), len(columns)
        from_0, from_1 = tuple(map(str, range(number))), tuple(map(str, range(1, number + 1)))
        usual = [name for wanted in _LABELS for name in table.columns if _name(name) == wanted and name not in columns]
        for label in [choices.label] if choices.label else usual:
            answers = {str(value).strip() for value in table.columns[label].values} - {""}
            lower = tuple(letter.lower() for letter in letters)
            for names in (columns, lower, () if columns[0].endswith("0") else from_1):
                if answers <= set(names) and names != letters:
                    return label, columns, names
            rows = zip(*(table.columns[name].values for name in (label, *columns)), strict=True)
            if answers <= set(letters) or answers <= set(from_0) or all(own in options for own, *options in rows):
                return label, columns, ()
    return None


def _text(table: Table, but: tuple[str, ...]) -> str:
    others = [name for name in table.columns if name not in but]
    names = [name for name in others if table.columns[name].is_text]
    if not names:
        message = f"A column of {table.name} must have texts beside the answers, but none seems to have."
        raise UndecidedError("text", message, others, default="")
    if named := [name for wanted in TEXT_NAMES for name in names if _name(name) == wanted]:
        return named[0]
    lengths = {name: sum(len(value or "") for value in table.columns[name].values) for name in names}
    longest = sorted(names, key=lambda name: -lengths[name])
    if len(names) == 1 or lengths[longest[0]] > 2 * lengths[longest[1]]:
        return longest[0]
    message = f"The column with texts must be known, but may be any of {', '.join(longest)}."
    raise UndecidedError("text", message, longest)


# ---- answers ---------------------------------------------------------------------------------------------------------
def _without_gaps(table: Table, texts: tuple[str, ...], label: str, choices: Choices) -> Table:
    """Return a table without the rows that lack a text or an answer, if `choices.drop_empty` asks for that."""
    column, answers = table.columns[label], choices.labels or ()
    kept = [
        row
        for row, answer in enumerate(column.texts)
        if any(table.columns[name].texts[row] for name in texts)
        and answer
        and (answer in answers or not _is_missing(answer, column))
    ]
    dropped = table.num_rows - len(kept)
    if not (choices.drop_empty and dropped):
        return table
    remark = f"{dropped} {'rows' if dropped > 1 else 'row'} without text or answer left out"
    return replace(
        table,
        columns={name: _Column([own.values[row] for row in kept]) for name, own in table.columns.items()},
        lines=None if table.lines is None else [table.lines[row] for row in kept],
        is_changed=True,
        remark="; ".join(filter(None, (table.remark, remark))),
    )


def _guess_kind(table: Table, label: str) -> str:
    """Return the kind of task that the answers are for.

    Raises:
        UndecidedError: they may be classes or words.
        TaskDataError: they may be numbers, which are not written plainly.
    """
    column = table.columns[label]
    if column.has_label_sets:
        return SETS
    if column.is_mostly_numbers:
        values = sorted({float(text) for text in column.counts if is_number(text)})
        number, are_ids = len(values), values == list(range(len(values)))
        if not all(map(float.is_integer, values)) or number > (_FEW_IDS if are_ids else _FEW_NUMBERS):
            return NUMBERS
        is_even = len({after - before for before, after in pairwise(values)}) == 1
        is_scale = is_even and (values[0] != 0 or _name(label) in _SCALES)
        return LEVELS if is_scale and _LEAST_LEVELS <= number <= _MOST_LEVELS else CLASSES
    if written := next((text for text in column.counts if _GROUPED.fullmatch(text)), None):
        raise TaskDataError(
            f"Each {label} of {table.name} must be a plain number or a class, but got {written!r}"
            f" ({table.places_of(label, written)}).",
            hint=f"write numbers without signs and commas, or say that they are classes: --kind {CLASSES}",
        )
    if column.has_few:
        return CLASSES
    if label.lower() in _WRITTEN:
        return WRITING
    number = len(column.counts)
    kinds = (CLASSES, WRITING) if number * _FEW_REPEATS <= table.num_rows else (WRITING, CLASSES)
    message = (
        f"What is learnt must be known, but column {label!r} has {number} different values in {table.num_rows} rows:"
        " classes, or answers in words?"
    )
    raise UndecidedError("kind", message, kinds)


def _is_missing(text: str, column: _Column) -> bool:
    """Whether an answer stands for a missing one. A word that may be a class counts as missing only if it is rare."""
    word, most = text.lower(), max(1, len(column.values) // 100)
    return word in _NEVER_MEANT or (word in _MISSING and column.counts[text] <= most)


def _check_answers(table: Table, texts: Sequence[str], label: str, kind: str, choices: Choices) -> None:
    """Raise TaskDataError if rows lack a text or an answer, or answers look wrong; all of these are named."""
    column, each = table.columns[label], f"Each {label} of {table.name} must be"
    counts, faults, doubtful, meant = column.counts, list[str](), list[str](), dict[str, str]()
    read = zip(*(table.columns[name].texts for name in texts), strict=True)
    no_text = [row for row, own in enumerate(read) if not any(own)]
    no_answer = [row for row, own in enumerate(column.texts) if not own]
    for name, rows in ((" and ".join(texts), no_text), (label, no_answer)):
        if rows:
            faults.append(f"Each row of {table.name} must have a {name}, but {table.places(rows)} has none.")
    drops = bool(faults)
    if kind == NUMBERS or (choices.labels is None and column.is_mostly_numbers):
        takes_padded = kind == NUMBERS  # 007 is a number where people say that all are
        odd = [it for it in counts if finite_number(it) is None or not (takes_padded or is_number(it))]
        listed = [f"{text!r} ({table.places_of(label, text)})" for text in odd[:_MAX_LISTED]]
        doubtful = [f"{each} a number, but got {', '.join(listed)}."] if odd else []
        drops |= any(_is_missing(text, column) for text in odd)
    elif kind in _LABELLED and choices.labels is None:
        # Names that differ in case alone, or look like a few mistakes.
        usual: dict[str, str] = {}
        for name in sorted(counts, key=lambda name: -counts[name]):
            if (known := usual.setdefault(_look(name), name)) != name:
                meant[name] = known
        near = _alike_names({name: counts[name] for name in usual.values()}, table.num_rows)
        meant |= near if len(near) <= _FEW_PAIRS else {}
        missing = [name for name in counts if name not in meant and _is_missing(name, column)]
        asked = {name: f"did you mean {other!r}?" for name, other in meant.items()}
        asked |= dict.fromkeys(missing, "is the answer missing?")
        doubtful = [
            f"{each} a frequent one, but got {name!r} ({table.places_of(label, name)}): {question}"
            for name, question in asked.items()
        ]
        drops |= bool(missing)
    if not (faults := faults + doubtful):
        return
    head = [f"{table.name} has {len(faults)} faults:"] if len(faults) > 1 else []
    way = ", or leave out those without text or answer: --drop-empty" if drops and not choices.drop_empty else ""
    if doubtful and kind in _LABELLED and len(counts) <= _MANY_CLASSES:
        way += f"; if all of them are meant: --labels {shlex.quote(','.join(sorted(counts)))}"
    raise TaskDataError("\n".join([*head, *faults]), hint=f"correct or remove the rows{way}")


def _alike_names(counts: Mapping[str, int], num_rows: int) -> dict[str, str]:
    """Return rare names, each with a much more frequent one that it looks like; names that differ in digits do not."""
    most = max(1, num_rows // 100)
    frequent = {_look(name): name for name, count in counts.items() if count > most}
    alike = {}
    for name in (name for name, count in counts.items() if count <= most):
        near = next((frequent[it] for it in get_close_matches(_look(name), frequent, n=1, cutoff=0.8)), None)
        if near and counts[name] * 4 <= counts[near] and _DIGITS.sub("", name) != _DIGITS.sub("", near):
            alike[name] = near
    return alike


def _look(name: str) -> str:
    """Return a name as it looks, whatever its case: a zero-width space or a mark of direction (Cf) is not seen."""
    return " ".join("".join(c for c in name.casefold() if category(c) != "Cf").split())


def _flat(table: Table, label: str) -> Table:
    """Return a table with a row for each label of each row.

    Raises:
        TaskDataError: a value is neither a list nor a text.
    """
    column = table.columns[label]
    if not column.label_sets:
        odd = [row for row, it in enumerate(map(items_of, column.values)) if not isinstance(it, str | list | None)]
        raise TaskDataError(
            f"Each {label} of {table.name} must be a list of labels, or labels with {SEPARATOR} between, but"
            f" {table.places(odd or [0])} has another value.",
            hint="correct or remove the rows",
        )
    rows = [row for row, own in enumerate(column.label_sets) for _ in own]
    lines = [row + 1 if table.lines is None else table.lines[row] for row in rows]
    columns = {label: _Column([name for own in column.label_sets for name in own])}
    return replace(table, columns=columns, lines=lines, is_frame=table.is_frame or table.lines is None)


def _classes(table: Table, label: str, choices: Choices, kind: str) -> dict[str, int]:
    """Return the classes in id order with the rows that have each; numbers are the same however they are written."""
    counts, labels = table.columns[label].counts, choices.labels
    if labels is None:
        # Numbers that may be written in other ways too; `007`, `1e5` and `3.10` are names.
        if by_number := all(is_number(text) and _PLAIN.fullmatch(text) for text in counts):
            written, counts = counts, Counter()
            for text, count in written.items():
                counts[plain(text)] += count
        if kind == LEVELS and not by_number:
            raise UsageError(
                f"The order of the levels in {label!r} must be known, but {min(counts)!r} is no number.",
                hint="name them with --labels, lowest first",
            )
        if len(counts) < 2:
            raise TaskDataError(
                f"Column {label!r} must have two different answers at least, but has only {next(iter(counts), '')!r}.",
                hint="name another column with --label",
            )
        return {name: counts[name] for name in sorted(counts, key=Decimal if by_number else None)}
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UsageError(
            f"`--labels` must name two different labels at least, each once, but got {','.join(labels) or 'none'}.",
            hint=f"labels of {table.name}: {','.join(sorted(counts))[:200]}",
        )
    by_plain, chosen, unknown = {plain(name): name for name in labels}, dict.fromkeys(labels, 0), []
    for text, count in counts.items():
        name = text if text in chosen else by_plain.get(plain(text))
        if name is None:
            unknown.append(f"{text!r} ({table.places_of(label, text)})")
        else:
            chosen[name] += count
    if unknown:
        more = f" and {len(unknown) - _MAX_LISTED} others" if len(unknown) > _MAX_LISTED else ""
        raise UsageError(
            f"`--labels` must name every {label} of {table.name}, but lacks {', '.join(unknown[:_MAX_LISTED])}{more}.",
            hint="add them, or correct the rows",
        )
    return chosen


def plain(text: str) -> str:
    """Return a whole number as it is written plainly, so `1.0` as `1`, and `True` as `true`; others as they are."""
    if text.lower() in ("true", "false"):
        return text.lower()
    whole, _, fraction = text.partition(".")
    return text if fraction.strip("0") or not (is_number(text) and _PLAIN.fullmatch(text)) else str(int(whole))
