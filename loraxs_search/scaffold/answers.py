"""What the answers of rows are, classes, numbers or words; which of them are wrong; rows without what is wrong.

What people say of their rows themselves is in `Choices`; the rest is guessed.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from difflib import get_close_matches
from typing import Any
from unicodedata import category

from loraxs_search.errors import TaskDataError, UsageError, unknown_name
from loraxs_search.tasks.kinds import finite_number, only_number
from loraxs_search.tasks.rows import composed
from loraxs_search.tasks.tables import Table


@dataclass(frozen=True)
class Choices:
    """What is known; None is guessed.

    Args:
        text: Columns that an answer is given to.
        label: The column with answers.
        labels: The answers that there are, in the order of their ids.
        config: Of a data set of the hub, its configuration.
        split: Of a data set of the hub, what it is trained on.
        drop_empty: Leave out rows without a text or an answer.
        renamed: Labels as they are written, each with the label that is meant.
        test: A file of test rows.
        columns: Names of the columns of a file without a header.
        in_python: Whether hints name arguments instead of options.
    """

    name: str | None = None
    kind: str | None = None
    text: tuple[str, ...] | None = None
    label: str | None = None
    labels: tuple[str, ...] | None = None
    metric: str | None = None
    base: str | None = None
    max_length: int | None = None
    config: str | None = None
    split: str | None = None
    drop_empty: bool = False
    renamed: tuple[tuple[str, str], ...] = ()
    test: str | None = None
    columns: tuple[str, ...] | None = None
    in_python: bool = False

    def command(self, data: str) -> str:
        """Return the command, or the call, that makes a space for `data` with these choices."""
        given = {it.name: getattr(self, it.name) for it in fields(self) if it.name != "in_python"}
        if self.in_python:
            given["renamed"] = dict(self.renamed)
            arguments = ", ".join(f"{name}={value!r}" for name, value in given.items() if value)
            return f"loraxs_search.init(rows, {arguments})"
        words = ["loraxs-search", "init", data]
        for name in given:
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            if name == "renamed":
                words += [word for pair in value for word in ("--map", "=".join(pair))]
            elif value is True:
                words.append(option)
            elif value:
                words += [option, ",".join(value) if isinstance(value, tuple) else str(value)]
        return shlex.join(words)


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


CLASSES, NUMBERS, TAGS = "sequence-classification", "regression", "token-classification"
WRITING, CHOOSING = "text-generation", "multiple-choice"

_WRITTEN = ("completion", "response", "output", "answer", "target", "summary", "translation")
_NEVER_MEANT = ("nan", "null", "#n/a", "<na>", "nat")  # what programs write for a value that is missing
_MISSING = (*_NEVER_MEANT, "none", "n/a", "na", "?", "-")  # the others may be a class, if many rows have them
_MAX_CLASSES = 50  # more need many rows each
_MANY_ROWS = 20  # so many rows for each different value, and they are classes
_FEW_REPEATS = 3  # so many, and they may rather be classes than answers in words
_FEW_NUMBERS = 12  # whole numbers with no more different values are taken for classes
_FEW_IDS = 20  # the same of numbers from 0 without a gap, as programs number classes
_FEW_PAIRS = 3  # more names that look alike are no mistakes
_MAX_LISTED = 5
_DIGITS = re.compile(r"\d+")
_PADDED = re.compile(r"[-+]?0\d")  # a name, such as a postcode
_PLAIN = re.compile(r"[-+]?(\d+\.?0*|\d*\.\d*[1-9])", re.ASCII)


def _different(values: Sequence[Any]) -> Counter[str]:
    """Count the values of a column as texts, without the space around them; empty ones do not count."""
    return Counter(text for value in values if (text := _row_text(value)))


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number, or written as one without zeros before it."""
    return finite_number(value) is not None and not _PADDED.match(_row_text(value))


def _is_missing(text: str, counts: Mapping[str, int], num_rows: int) -> bool:
    """Whether an answer stands for a missing one. A word that may be a class counts as missing only if it is rare."""
    word = text.lower()
    return word in _NEVER_MEANT or (word in _MISSING and counts[text] <= max(1, num_rows // 100))


def doubtful_classes(labels: Iterable[str]) -> list[str]:
    """Return classes whose names may say that an answer is missing."""
    return [name for name in labels if name.lower() in _MISSING]


def has_few(table: Table, label: str) -> bool:
    """Whether the values of a column are few enough to be classes."""
    number = len(_different(table.columns[label]))
    few = min(_MAX_CLASSES, max(2, table.num_rows // 4))
    return number <= few or number * _MANY_ROWS <= table.num_rows


def are_numbers(table: Table, label: str) -> bool:
    """Whether a column's values are numbers that may be answers: whole ones that all differ tell rows apart."""
    counts = _different(table.columns[label])
    whole = all(float(text).is_integer() for text in counts if _is_number(text))
    return _are_amounts(counts) or (_mostly_numbers(table, counts) and not (whole and len(counts) == table.num_rows))


def _are_amounts(counts: Mapping[str, int]) -> bool:
    """Whether answers are numbers as people write them, such as `$1,200` or `3,5`, which a task does not read."""
    odd = [text for text in counts if not _is_number(text)]
    return bool(odd) and all(
        only_number(text) and not any(map(str.isalpha, text)) and not _PADDED.match(text) for text in odd
    )


def guess_kind(table: Table, label: str) -> str:
    """Return the kind of task that the answers are for.

    Raises:
        UndecidedError: they may be classes or words.
    """
    if label in table.label_names:
        return CLASSES
    counts = _different(table.columns[label])
    if _mostly_numbers(table, counts):
        values = {float(text) for text in counts if _is_number(text)}
        few = _FEW_IDS if values == set(range(len(values))) else _FEW_NUMBERS
        return CLASSES if all(map(float.is_integer, values)) and len(values) <= few else NUMBERS
    if has_few(table, label):
        return CLASSES
    if label.lower() in _WRITTEN:
        return WRITING
    if _are_amounts(counts):
        shown = next(text for text in counts if not _is_number(text))
        raise TaskDataError(
            f"Each {label} of {table.name} must be a plain number, but got {shown!r}"
            f" ({places(table, _rows_of(table, label, shown)[:1])}).",
            hint=f"write it as {only_number(shown)}, or say with --kind what else it is",
        )
    message = f"What is learnt must be known, but column {label!r} has {len(counts)} different values in"
    kinds = (CLASSES, WRITING) if len(counts) * _FEW_REPEATS <= table.num_rows else (WRITING, CLASSES)
    raise UndecidedError("kind", f"{message} {table.num_rows} rows: classes, or answers in words?", kinds)


def check_answers(table: Table, texts: Sequence[str], label: str, kind: str, choices: Choices) -> dict[str, int]:
    """Return the classes in id order with the rows that have each; no class where the kind has none.

    Raises:
        TaskDataError: rows lack a text or an answer, or answers look wrong; all of these are named.
        UsageError: the labels that were chosen are not all that there are.
    """
    faults = _empty(table, texts, label) if table.is_file else []
    counts, doubtful, meant = _different(table.columns[label]), list[str](), dict[str, str]()
    drops = lacks = bool(faults)
    if kind == NUMBERS or (choices.labels is None and _mostly_numbers(table, counts)):
        takes_padded = kind == NUMBERS  # 007 is a number where people say that all are
        odd = [it for it in counts if finite_number(it) is None or not (takes_padded or _is_number(it))]
        doubtful = _no_numbers(table, label, odd)
        drops |= any(_is_missing(text, counts, table.num_rows) for text in odd)
    elif kind == CLASSES and choices.labels is None and label not in table.label_names:
        meant = _meant(table, counts)
        missing = [name for name in counts if name not in meant and _is_missing(name, counts, table.num_rows)]
        doubtful = _misspelt(table, label, meant, missing)
        drops |= bool(missing)
    if faults := faults + doubtful:
        head = [f"{table.name} has {len(faults)} faults:"] if len(faults) > 1 else []
        asked = replace(choices, drop_empty=drops or choices.drop_empty, renamed=(*choices.renamed, *meant.items()))
        way = f", or: {asked.command(table.name)}" if asked != choices and table.is_file else ""
        if doubtful and kind == CLASSES and len(counts) <= _MANY_ROWS:
            meant_all = replace(choices, drop_empty=lacks or choices.drop_empty, labels=tuple(sorted(counts)))
            way += f"; if all of them are meant: {meant_all.command(table.name)}"
        raise TaskDataError("\n".join([*head, *faults]), hint=f"correct or remove the rows{way}")
    return _classes(table, label, counts, choices) if kind == CLASSES else {}


# ---- faults ----------------------------------------------------------------------------------------------------------
def _empty(table: Table, texts: Sequence[str], label: str) -> list[str]:
    columns = [table.columns[name] for name in texts]
    no_text = [row for row, values in enumerate(zip(*columns, strict=True)) if not any(map(_row_text, values))]
    no_answer = [row for row, value in enumerate(table.columns[label]) if not _row_text(value)]
    wanted = ((" and ".join(texts), no_text), (label, no_answer))
    return [
        f"Each row of {table.name} must have a {name}, but {places(table, rows)} has none."
        for name, rows in wanted
        if rows
    ]


def _no_numbers(table: Table, label: str, odd: Sequence[str]) -> list[str]:
    listed = [f"{text!r} ({places(table, _rows_of(table, label, text))})" for text in odd[:_MAX_LISTED]]
    return [f"Each {label} of {table.name} must be a number, but got {', '.join(listed)}."] if odd else []


def _meant(table: Table, counts: Mapping[str, int]) -> dict[str, str]:
    """Return what labels mean that differ in case alone, or look like a few mistakes.

    As classes of their own they would be wrong.
    """
    usual: dict[str, str] = {}
    meant = {}
    for name in sorted(counts, key=lambda name: -counts[name]):
        if (known := usual.setdefault(_folded(name), name)) != name:
            meant[name] = known
    near = alike_names({name: counts[name] for name in usual.values()}, table.num_rows)
    return meant | (near if len(near) <= _FEW_PAIRS else {})


def alike_names(counts: Mapping[str, int], num_rows: int) -> dict[str, str]:
    """Return rare names, each with a much more frequent one that it looks like; names that differ in digits do not."""
    most = max(1, num_rows // 100)
    frequent = {_folded(name): name for name, count in counts.items() if count > most}
    alike = {}
    for name in (name for name, count in counts.items() if count <= most):
        near = next((frequent[it] for it in get_close_matches(_folded(name), frequent, n=1, cutoff=0.8)), None)
        if near and counts[name] * 4 <= counts[near] and _DIGITS.sub("", name) != _DIGITS.sub("", near):
            alike[name] = near
    return alike


def _folded(name: str) -> str:
    """Return a name as it looks, whatever its case: a zero-width space or a mark of direction (Cf) is not seen."""
    return " ".join("".join(c for c in name.casefold() if category(c) != "Cf").split())


def _misspelt(table: Table, label: str, meant: Mapping[str, str], missing: Sequence[str]) -> list[str]:
    faults = {name: f"did you mean {usual!r}?" for name, usual in meant.items()}
    faults |= dict.fromkeys(missing, "is the answer missing?")
    return [
        f"Each {label} of {table.name} must be a frequent one, but got {name!r}"
        f" ({places(table, _rows_of(table, label, name))}): {fault}"
        for name, fault in faults.items()
    ]


# ---- classes ---------------------------------------------------------------------------------------------------------
def _classes(table: Table, label: str, counts: Counter[str], choices: Choices) -> dict[str, int]:
    if choices.labels is not None:
        return _chosen(table, label, counts, choices.labels)
    if label in table.label_names:
        return {name: counts[name] for name in table.label_names[label]}
    by_number = all(map(_is_plain, counts))
    if by_number:
        counts, written = Counter(), counts
        for text, count in written.items():
            counts[_plain(text)] += count
    if len(counts) < 2:
        raise TaskDataError(
            f"Column {label!r} must have two different answers at least, but has only {next(iter(counts), '')!r}.",
            hint="name another column with --label",
        )
    return {name: counts[name] for name in sorted(counts, key=Decimal if by_number else None)}


def _chosen(table: Table, label: str, counts: Counter[str], labels: tuple[str, ...]) -> dict[str, int]:
    """Return the rows of each label that was chosen; numbers are the same however they are written."""
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise UsageError(
            f"`--labels` must name two different labels at least, each once, but got {','.join(labels) or 'none'}.",
            hint=f"labels of {table.name}: {','.join(sorted(counts))[:200]}",
        )
    by_plain = {_plain(name): name for name in labels}
    chosen = Counter(dict.fromkeys(labels, 0))
    unknown = []
    for text, count in counts.items():
        name = text if text in chosen else by_plain.get(_plain(text))
        if name is None:
            unknown.append(f"{text!r} ({places(table, _rows_of(table, label, text))})")
        else:
            chosen[name] += count
    if unknown:
        more = f" and {len(unknown) - _MAX_LISTED} others" if len(unknown) > _MAX_LISTED else ""
        raise UsageError(
            f"`--labels` must name every {label} of {table.name}, but lacks {', '.join(unknown[:_MAX_LISTED])}{more}.",
            hint="add them, or correct the rows",
        )
    return dict(chosen)


def _mostly_numbers(table: Table, counts: Mapping[str, int]) -> bool:
    """Whether answers are numbers, but for so few that these are mistakes, and for those that are missing."""
    given = {text: count for text, count in counts.items() if text.lower() not in _NEVER_MEANT}
    odd = sum(count for text, count in given.items() if not _is_number(text))
    return odd < len(given) and odd <= (max(1, table.num_rows // 100) if table.num_rows >= _MANY_ROWS else 0)


def _is_plain(text: str) -> bool:
    """Whether a class is a number, that may be written in other ways too; `007`, `1e5` and `3.10` are names."""
    return _is_number(text) and bool(_PLAIN.fullmatch(text))


def _plain(text: str) -> str:
    """Return a whole number as it is written plainly, so `1.0` as `1`; other texts as they are."""
    whole, _, fraction = text.partition(".")
    return text if fraction.strip("0") or not _is_plain(text) else str(int(whole))


def _row_text(value: Any) -> str:
    """Return a value as text that looks alike, without the space around it; nothing for None."""
    return "" if value is None else composed(str(value).strip())


def _rows_of(table: Table, label: str, text: str) -> list[int]:
    return [row for row, value in enumerate(table.columns[label]) if _row_text(value) == text]


def places(table: Table, rows: Sequence[int]) -> str:
    """Return where rows stand, of many the first ones."""
    more = f" and {len(rows) - _MAX_LISTED} more" if len(rows) > _MAX_LISTED else ""
    return ", ".join(table.place(row) for row in rows[:_MAX_LISTED]) + more


def cleaned(table: Table, texts: tuple[str, ...], label: str, choices: Choices) -> Table:
    """Return a table as `choices.drop_empty` and `choices.renamed` ask for it; without them, as it is.

    Raises:
        UsageError: a label that is renamed is not there, or the rows are not in a file.
    """
    if not (choices.drop_empty or choices.renamed):
        return table
    if not table.is_file:
        raise UsageError(
            f"`--drop-empty` and `--map` must go with a file, but {table.name} is a data set of the hub.",
            hint="save its rows as a file first",
        )
    counts, new = _different(table.columns[label]), dict(choices.renamed)
    for old in new:
        if old not in counts:
            raise UsageError(unknown_name("--map", old, counts), hint=f"labels of {table.name}")
    answers = [new.get(_row_text(value), value) for value in table.columns[label]]
    columns = table.columns | {label: answers}
    kept = list(range(table.num_rows))
    if choices.drop_empty:
        counts, meant = _different(answers), choices.labels or ()
        kept = [
            row
            for row in kept
            if any(_row_text(columns[name][row]) for name in texts)
            and _row_text(answers[row])
            and (_row_text(answers[row]) in meant or not _is_missing(_row_text(answers[row]), counts, table.num_rows))
        ]
    remarks = [table.remark] if table.remark else []
    if dropped := table.num_rows - len(kept):
        verb = "rows without text or answer are" if dropped > 1 else "row without text or answer is"
        remarks.append(f"{dropped} {verb} left out")
    remarks += [f"{old} is read as {name}" for old, name in choices.renamed]
    return replace(
        table,
        columns={name: [values[row] for row in kept] for name, values in columns.items()},
        lines=None if table.lines is None else [table.lines[row] for row in kept],
        is_changed=True,
        remark="; ".join(remarks),
    )
