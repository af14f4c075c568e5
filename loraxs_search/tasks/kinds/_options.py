"""The options of a row, from templates or from a column that holds a list; and which one is right: by index, letter or
the option's text, or by given names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import TaskDataError, shortened
from loraxs_search.records.task import Task
from loraxs_search.tasks.kinds._base import Fault
from loraxs_search.tasks.kinds._templates import Template, written
from loraxs_search.tasks.rows import SourceLocation, collected, composed, raise_joined, refuse

SEPARATOR = "|"  # between the options of a question that is given as one text


@dataclass(frozen=True)
class OptionTexts:
    """How the options of a row are written.

    Args:
        templates: One for each option, or one that is filled with each item of a column.
        column: The column that holds a list; None if there is a template for each option.
        adds_space: Whether a space stands before an item that does not begin with one.
    """

    templates: tuple[Template, ...]
    column: str | None = None
    adds_space: bool = False

    @classmethod
    def of(cls, options: str | Sequence[str], *, adds_space: bool) -> OptionTexts:
        """Read the key `options`: a list of templates, a column, or one template around a column.

        Args:
            adds_space: For a column without a template around it.
        Raises:
            ValueError: a template cannot be read, or does not name one column.
        """
        if not isinstance(options, str):
            return cls(tuple(Template.of(text) for text in options))
        if "{" not in options and "}" not in options:
            return cls((Template((("", options), ("", None))),), options, adds_space)
        template = Template.of(options)
        if len(template.columns) != 1:
            raise ValueError(f"must name the one column that holds lists, but got {options!r}")
        return cls((template,), template.columns[0])

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column, once."""
        return tuple(dict.fromkeys(name for template in self.templates for name in template.columns))

    @property
    def fixed(self) -> list[str] | None:
        """The options where all rows have the same ones."""
        return None if self.columns else self.fill({})

    def fill(self, row: Mapping[str, Any]) -> list[str]:
        """Return the options of a row, which has a list in `column`.

        Raises:
            ValueError: a value cannot be written, or is no list.
        """
        if self.column is None:
            return [template.fill(row) for template in self.templates]
        items = row[self.column]
        if not isinstance(items, list | tuple) or any(isinstance(item, list | tuple | dict) for item in items):
            raise ValueError("it is no list of texts or numbers")
        texts = [self.templates[0].fill({self.column: item}) for item in items]
        return [f" {text}" if self.adds_space and not text[:1].isspace() else text for text in texts]


def items_of(value: Any) -> Any:
    """Return the list that a text holds, as JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # the latter at a text of many `[`
            return value
    return value


def shown_options(options: Sequence[str]) -> str:
    """Return options as one text."""
    return f" {SEPARATOR} ".join(option.strip() for option in options)


def option_laws(options: object) -> Iterator[Fault]:
    """Yield what is wrong with the key `options`."""
    try:
        form = OptionTexts.of(options, adds_space=False)  # type: ignore[arg-type]  # a space file may hold anything
    except ValueError as error:
        yield ("options",), f"{error}."
        return
    if form.column is None:
        texts = [str(text).strip() for text in options]  # type: ignore[attr-defined]  # it is a list
        for law, is_broken in _LAWS.items():
            if is_broken(texts):
                yield ("options",), f"must {law}, but got {json.dumps(options, ensure_ascii=False)}."
                return


def read_options(
    form: OptionTexts, rows: Sequence[Mapping[str, Any]], stored: Sequence[Any], task: Task, place: SourceLocation
) -> tuple[list[list[str]], list[TaskDataError]]:
    """Return each row's options, none of a row whose options are faulty, and the faults.

    Args:
        stored: What messages show of each row.
    """
    options, faults = list[list[str]](), dict[str, list[int]]()
    for number, row in enumerate(rows):
        try:
            own = form.fill(row)
            stripped = [text.strip() for text in own]
            law = next((law for law, is_broken in _ROW_LAWS.items() if is_broken(stripped)), "")
        except ValueError:
            law = "be a list of texts or numbers"
        options.append([] if law else own)
        if law:
            faults.setdefault(law, []).append(number)
    errors = list[TaskDataError]()
    for law, numbers in faults.items():
        with collected(errors):
            refuse(task, f"the options of a row must {law}", stored, numbers, place)
    return options, errors


# Options of a row may be equal: a few rows of OpenBookQA and Social IQa are so, and others score them as they are.
_ROW_LAWS: dict[str, Callable[[list[str]], bool]] = {
    "be two or more": lambda texts: len(texts) < 2,
    "each have text": lambda texts: not all(texts),
}
_LAWS: dict[str, Callable[[list[str]], bool]] = {
    **_ROW_LAWS,
    "differ from each other": lambda texts: len(set(texts)) < len(texts),
}


def _read(way: str, value: Any, options: Sequence[str]) -> int | None:
    """Return the option that a stored label means if it is an `index`, a `letter` or a `text`; None if it is none.

    Of equal options it is the first: a model holds them equally likely, and the first of the likeliest is its answer.
    """
    index: int | None = None
    if way == "index":
        if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
            value = int(value) if len(value.strip()) < 10 else None
        if isinstance(value, float) and value.is_integer():  # where Arrow has made room for missing values
            value = int(value)
        index = value if isinstance(value, int) and not isinstance(value, bool) else None
    elif way == "letter":
        letter = value.strip().upper() if isinstance(value, str) else ""
        index = ascii_uppercase.find(letter) if len(letter) == 1 else None
    else:
        text = _plain(value)
        index = next((index for index, option in enumerate(options) if composed(option.strip()) == text), None)
    return options.index(options[index]) if index is not None and 0 <= index < len(options) else None


_WAYS = {"index": "index, counted from 0,", "letter": "letter, from A,", "text": "text"}


def option_labels(
    values: Sequence[Any], options: Sequence[Sequence[str]], task: Task, place: SourceLocation
) -> npt.NDArray[np.int64]:
    """Return the index of each row's right option, (N,).

    The whole column is read in one way: the one that fits every row. If several fit, they must agree on every row.

    Args:
        values: The column, as stored.
        options: Each row's; a row without any is not judged, and gets 0.
    Raises:
        TaskDataError: no way of reading fits every row, or two do and differ.
    """
    judged, key = [row for row, own in enumerate(options) if own], task.settings["label"]
    answers = {way: [_read(way, values[row], options[row]) for row in judged] for way in _WAYS}
    misfits = {
        way: [row for row, it in zip(judged, found, strict=True) if it is None] for way, found in answers.items()
    }
    fitting = [way for way, rows in misfits.items() if not rows]
    if not fitting:
        way = min(misfits, key=lambda each: len(misfits[each]))
        some = len(judged) - len(misfits[way])
        law = f"the {_WAYS[way]} of one of its row's options" if some else "the index, letter or text of an option"
        others = f", as it is in {some:,} other row{'s' * (some > 1)}" if some else ""
        hint = "correct the rows, or the task's `options`"
        refuse(task, f"`{key}` must be {law}{others}", values, misfits[way], place, hint)
    way, *more = fitting
    for other in more:
        pairs = zip(judged, answers[way], answers[other], strict=True)
        if differing := [row for row, one, two in pairs if one != two]:
            row = differing[0]
            means = [shortened(options[row][_read(it, values[row], options[row]) or 0]) for it in (way, other)]
            free = next(it for it in ("letter", "index") if it not in (way, other))
            raise TaskDataError(
                f"Task {task.name}: `{key}` must name options in one way only, but every row of {place.name} can be"
                f" read as {way} and as {other}, and {place.values(values, differing)} would mean"
                f" {' or '.join(means)}.",
                hint=f"write each label as the option's {_WAYS[free].rstrip(',')}",
            )
    labels = np.zeros(len(values), np.int64)
    labels[judged] = np.array(answers[way], np.int64)
    return labels


def named_labels(
    values: Sequence[Any], names: Sequence[Any], options: Sequence[Sequence[str]], task: Task, place: SourceLocation
) -> npt.NDArray[np.int64]:
    """Return the index of each row's right option, (N,), where the column holds names of options.

    Args:
        values: The column, as stored.
        names: Of each row's options, in their order, as stored.
        options: Each row's; a row without any is not judged, and gets 0.
    Raises:
        TaskDataError: a row has another number of names than of options, or its label is none of them.
    """
    labels, faults, uneven, doubled = np.zeros(len(values), np.int64), list[int](), list[int](), list[int]()
    for row in (row for row, own in enumerate(options) if own):
        listed = items_of(names[row])
        known = list(map(_plain, listed)) if isinstance(listed, list | tuple) else []
        if len(known) != len(options[row]):
            uneven.append(row)
        elif len(set(known)) < len(known):
            doubled.append(row)
        elif (label := _plain(values[row])) in known:
            labels[row] = options[row].index(options[row][known.index(label)])
        else:
            faults.append(row)
    where = [
        (uneven, names, "option_names", "hold a name for each option of its row"),
        (doubled, names, "option_names", "hold names that differ from each other"),
        (faults, values, task.settings["label"], "be one of the names of its row's options"),
    ]
    errors = list[TaskDataError]()
    for rows, stored, key, law in where:
        with collected(errors):
            refuse(task, f"`{key}` must {law}", stored, rows, place, "correct the rows, or the task's `option_names`")
    raise_joined(task, errors)
    return labels


def _plain(value: Any) -> str:
    try:
        return composed(written(value).strip())
    except ValueError:
        return ""
