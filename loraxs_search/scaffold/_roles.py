"""Which column is what, guessed from names and values."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraxs_search.errors import TaskDataError, UsageError, unknown_name
from loraxs_search.scaffold.answers import (
    CHOOSING,
    CLASSES,
    NUMBERS,
    TAGS,
    WRITING,
    Choices,
    UndecidedError,
    are_numbers,
    check_answers,
    cleaned,
    guess_kind,
    has_few,
    places,
)
from loraxs_search.tasks.kinds import finite_number, items_of
from loraxs_search.tasks.rows import TEXT_NAMES
from loraxs_search.tasks.tables import Table

_LABELS = (
    *("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "gold", "y", "score"),
    *("rating", "stars", "answer", "answerkey", "correct", "output", "completion", "response"),
)
_KINDS = (CLASSES, NUMBERS, TAGS, WRITING, CHOOSING)
_LETTERS = string.ascii_uppercase
_WORDS = ("tokens", "words", "text", "sentence")
_TAG = re.compile(r"O|[BI]-\S+")
_DATE = re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}([T ]\d{1,2}:\d{2}.*)?")
_OPTION = re.compile(r"((?:option|opt|choice|answer|ending|sol)_?)?([a-z]|\d)")  # one of several columns of options
_OPTIONS = ("options", "choices", "answers", "endings", "candidates", "alternatives", "completions")
_PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text_a", "text_b")),
    *(("context", "question"), ("passage", "question"), ("instruction", "input")),
    *(("text1", "text2"), ("query", "passage"), ("question", "sentence"), ("query", "document")),
)


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


def guess_roles(table: Table, choices: Choices) -> tuple[Roles, Table]:
    """Return what the columns of a table are for, and the table as the choices clean it.

    Raises:
        UndecidedError: that cannot be known.
        UsageError: a column that was named is not there, or several choices do not go together.
        TaskDataError: texts or labels are missing, or look misspelt.
    """
    _check_header(table, choices)
    _check_named(table, choices)
    if choices.labels is not None and choices.kind not in (None, CLASSES, TAGS):
        raise UsageError(
            f"`--labels` must name the classes of {CLASSES} or {TAGS}, but --kind is {choices.kind}.",
            hint="leave out --labels, or change --kind",
        )
    if choices.kind == TAGS or (choices.kind is None and choices.text is None and _tags(table, choices)):
        return _tagged(table, choices), table
    options = _options(table, choices)
    if choices.kind is None and choices.labels is not None and options is not None:
        message = f"Column {options!r} has options, but --labels names classes."
        raise UndecidedError("kind", message, (CLASSES, CHOOSING))
    kind = choices.kind or (CLASSES if choices.labels is not None else None)
    if kind in (None, CHOOSING) and options is None and (found := _option_columns(table, choices)) is not None:
        label, columns, names = found
        texts = choices.text or (_text(table, but=(label, *columns)),)
        roles = Roles(CHOOSING, texts, label, columns, names, unused=_unused(table, choices, (*texts, label, *columns)))
        return roles, cleaned(table, texts, label, choices)
    if kind == CHOOSING or (kind is None and options is not None):
        if options is None:
            message = "A multiple-choice task needs a column of lists, or a column for each option, but there is none."
            raise UndecidedError("kind", message, _KINDS, default="")
        label = choices.label or _label(table, choices, but=(options,))
        texts = choices.text or (_text(table, but=(label, options)),)
        unused = _unused(table, choices, (*texts, label))
        return Roles(CHOOSING, texts, label, options, unused=unused), cleaned(table, texts, label, choices)
    label = choices.label or _label(table, choices)
    texts = choices.text or _texts(table, label)
    table = cleaned(table, texts, label, choices)
    kind = kind or guess_kind(table, label)
    if kind in (CLASSES, NUMBERS) and len(texts) > 2:
        raise UsageError(
            f"`--text` must name one column, or two for pairs of texts, but got {','.join(texts)}.",
            hint="join them into one column, or use --kind text-generation",
        )
    counts = check_answers(table, texts, label, kind, choices)
    return Roles(kind, texts, label, label_counts=counts, unused=_unused(table, choices, (*texts, label))), table


def _tagged(table: Table, choices: Choices) -> Roles:
    """Return which column has the words and which their tags.

    Raises:
        UndecidedError: no column has tags, or none has words for them.
        UsageError: rows are to be dropped, or labels renamed.
        TaskDataError: a row has not as many words as tags.
    """
    if choices.drop_empty or choices.renamed:
        raise UsageError(f"`--drop-empty` and `--map` must not go with {TAGS}.", hint="correct the file itself")
    label = next(iter(_tags(table, choices)), None)
    others = [name for name, values in table.columns.items() if name != label and _are_word_lists(values)]
    words = (choices.text or ())[:1] or [n for n in others if _folded(n) in _WORDS] or others
    if label is None or not words:
        missing = "label" if label is None else "text"
        raise UndecidedError(
            missing, f"{TAGS} needs a column with lists of words and one with lists of their IOB2 tags."
        )
    tokens, tags = (list(map(items_of, table.columns[name])) for name in (words[0], label))
    if odd := [row for row, (own, its) in enumerate(zip(tokens, tags, strict=True)) if len(own) != len(its) or not own]:
        raise TaskDataError(
            f"Each row of {table.name} must have a tag for each word, but {places(table, odd)} has not.",
            hint="correct or remove the rows",
        )
    counts = Counter(str(tag) for row in tags for tag in row)
    names = choices.labels or sorted(counts, key=lambda tag: (tag != "O", tag.partition("-")[2], tag))
    if unknown := counts.keys() - set(names):
        raise UsageError(unknown_name("--labels", min(unknown), names), hint="name every tag of the file")
    return Roles(TAGS, (words[0],), label, label_counts={name: counts[name] for name in names})


# ---- checks ----------------------------------------------------------------------------------------------------------
def _check_header(table: Table, choices: Choices) -> None:
    """Refuse a first line that is itself a row: none of its words is usual for a column, and one is a value below."""
    if table.lines is None or table.is_frame or choices.text or choices.label or choices.columns:
        return
    usual = {*_LABELS, *TEXT_NAMES, *(name for pair in _PAIRS for name in pair)}
    if any(_folded(name) in usual for name in table.columns):
        return
    if values := [name for name, column in table.columns.items() if name in column]:
        raise TaskDataError(
            f"The first line of {table.name} must name the columns, but looks like a row:"
            f" {values[0]!r} is also a value below it.",
            hint="name the columns, as in --columns text,label; or confirm the names with --text and --label",
        )


def _check_named(table: Table, choices: Choices) -> None:
    for option, names in (("text", choices.text or ()), ("label", (choices.label,) if choices.label else ())):
        for name in names:
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


# ---- guesses ---------------------------------------------------------------------------------------------------------
def _label(table: Table, choices: Choices, but: tuple[str, ...] = ()) -> str:
    """Return the column with the answers: one of a usual name, else the only one that has few values, or numbers."""
    taken = (*but, *(choices.text or ()))
    names = [
        name
        for name, values in table.columns.items()
        if name not in taken and _are_scalars(values) and not _are_dates(values)
    ]
    if not names:
        raise TaskDataError(
            f"{table.name} must have a column with answers beside its texts, but has none.", hint="add that column"
        )
    numbers = [name for name in names if are_numbers(table, name)]
    if choices.kind == NUMBERS:
        names = numbers or [name for name in names if not _are_texts(table.columns[name])] or names
    if named := [name for wanted in _LABELS for name in names if _folded(name) == wanted]:
        return named[0]
    few = [name for name in names if len(set(map(str, table.columns[name]))) > 1 and has_few(table, name)]
    likely = list(dict.fromkeys((*few, *numbers))) if choices.kind != NUMBERS else names
    if len(likely) == 1 or (choices.text and len(names) == 1):
        return (likely or names)[0]
    message = f"The column with answers must be known, but it may be any of {', '.join(likely or names)}."
    raise UndecidedError("label", message, likely or names, default="")


def _option_columns(table: Table, choices: Choices) -> tuple[str, tuple[str, ...], tuple[str, ...]] | None:
    """Return the column with answers, those with an option each, and the options' names; None if no columns are such.

    They are called A, B, ... or option1, option2, ..., and each answer says which one is right.
    """
    runs: dict[str, list[str]] = {}
    for name in table.columns:
        if (match := _OPTION.fullmatch(_folded(name))) and name not in (choices.text or ()):
            run = runs.setdefault(match[1] or "", [])
            if (not run and match[2] in "a01") or (run and ord(match[2]) == ord(run[-1][-1].lower()) + 1):
                run.append(name)
    for columns in (tuple(run) for run in runs.values() if len(run) > 1):
        usual = [name for wanted in _LABELS for name in table.columns if _folded(name) == wanted]
        for label in [choices.label] if choices.label else [name for name in usual if name not in columns]:
            if (names := _option_names(table, columns, label)) is not None:
                return label, columns, names
    return None


def _option_names(table: Table, columns: tuple[str, ...], label: str) -> tuple[str, ...] | None:
    """Return what the answers call the options; empty if a task knows it by itself, None if they name none."""
    answers, number = {str(value).strip() for value in table.columns[label]} - {""}, len(columns)
    letters, from_0, from_1 = (tuple(map(str, it)) for it in (_LETTERS[:number], range(number), range(1, number + 1)))
    for names in (columns, tuple(letter.lower() for letter in letters), () if columns[0].endswith("0") else from_1):
        if answers <= set(names) and names != letters:
            return names
    rows = zip(table.columns[label], *(table.columns[name] for name in columns), strict=True)
    known = answers <= set(letters) or answers <= set(from_0) or all(answer in options for answer, *options in rows)
    return () if known else None


def _texts(table: Table, label: str) -> tuple[str, ...]:
    lower = {_folded(name): name for name in table.columns if name != label}
    for first, second in _PAIRS:
        if first in lower and second in lower:
            return lower[first], lower[second]
    return (_text(table, (label,)),)


def _options(table: Table, choices: Choices) -> str | None:
    """Return the column whose lists are what answers are chosen from; None if lists seem to be something else.

    Lists with another name, such as tags, are options only where the kind says so.
    """
    lists = [name for name, values in table.columns.items() if _are_lists(values)]
    named = [name for name in lists if _folded(name).rpartition("_")[2] in _OPTIONS]
    return next(iter(named or (lists if choices.kind == CHOOSING else ())), None)


def _tags(table: Table, choices: Choices) -> list[str]:
    """Return the columns whose lists hold tags of the IOB2 form alone."""
    names = [choices.label] if choices.label else list(table.columns)
    return [
        name
        for name in names
        if _are_word_lists(values := table.columns[name])
        and all(isinstance(tag, str) and _TAG.fullmatch(tag) for value in values for tag in items_of(value))
    ]


def _are_word_lists(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(items_of(value), list) for value in values)


def _unused(table: Table, choices: Choices, used: Sequence[str]) -> tuple[str, ...]:
    if choices.text is not None:
        return ()
    return tuple(
        name for name, values in table.columns.items() if name not in used and any(values) and _are_texts(values)
    )


def _text(table: Table, but: tuple[str, ...]) -> str:
    others = [name for name in table.columns if name not in but]
    names = [name for name in others if _are_texts(table.columns[name])]
    if not names:
        message = f"A column of {table.name} must have texts beside the answers, but none seems to have."
        raise UndecidedError("text", message, others, default="")
    named = [name for wanted in TEXT_NAMES for name in names if _folded(name) == wanted]
    longest = sorted(names, key=lambda name: -_mean_length(table.columns[name]))
    if named or len(names) == 1:
        return (named or names)[0]
    first, second = (_mean_length(table.columns[name]) for name in longest[:2])
    if first > 2 * second:
        return longest[0]
    message = f"The column with texts must be known, but may be any of {', '.join(longest)}."
    raise UndecidedError("text", message, longest)


def _folded(name: str) -> str:
    return name.lower().replace(" ", "_")


def _are_texts(values: Sequence[Any]) -> bool:
    filled = [value for value in values if value is not None and str(value).strip()]
    others = filled and (all(finite_number(value) is not None for value in filled) or _are_dates(filled))
    return all(isinstance(value, str) for value in filled) and not others and not _are_lists(filled)


def _are_dates(values: Sequence[Any]) -> bool:
    filled = [str(value).strip() for value in values if value is not None and str(value).strip()]
    return bool(filled) and all(map(_DATE.fullmatch, filled))


def _are_lists(values: Sequence[Any]) -> bool:
    """Whether each value is a list of several items, or such a list in JSON's form, as a .csv has it."""
    return bool(values) and all(isinstance(own, list) and len(own) > 1 for own in map(items_of, values))


def _are_scalars(values: Sequence[Any]) -> bool:
    return not any(isinstance(value, (list, dict)) for value in values) and not _are_lists(values)


def _mean_length(values: Sequence[Any]) -> float:
    return sum(len(value or "") for value in values) / max(1, len(values))
