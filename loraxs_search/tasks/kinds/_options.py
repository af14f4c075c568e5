"""The options of a row: from templates, or from a column that holds a list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraxs_search.errors import TaskDataError
from loraxs_search.records import Task
from loraxs_search.tasks._source_location import SourceLocation
from loraxs_search.tasks.kinds._base import Fault
from loraxs_search.tasks.kinds._templates import Template

SEPARATOR = "|"  # between the options of a question that is given as one text


@dataclass(frozen=True)
class OptionTexts:
    """How the options of a row are written.

    Args:
        templates: One for each option, or one that is filled with each item of a column.
        column: The column that holds a list; None where there is a template for each option.
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
        except ValueError:
            return value
    return value


def split_options(question: Any) -> list[Any]:
    """Return the options of a question: a list, JSON's text of one, or texts with bars between them."""
    items = items_of(question)
    return [text.strip() for text in items.split(SEPARATOR)] if isinstance(items, str) else list(items)


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
        own, law = _judged(form, row)
        options.append([] if law else own)
        if law:
            faults.setdefault(law, []).append(number)
    return options, [
        TaskDataError(
            f"Task {task.name}: the options of a row must {law}, but {place.name} has {place.values(stored, numbers)}.",
            hint="correct or remove the rows",
        )
        for law, numbers in faults.items()
    ]


def _judged(form: OptionTexts, row: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the options of a row, and the law that they break."""
    try:
        texts = form.fill(row)
    except ValueError:
        return [], "be a list of texts or numbers"
    stripped = [text.strip() for text in texts]
    return texts, next((law for law, is_broken in _ROW_LAWS.items() if is_broken(stripped)), "")


# Options of a row may be equal: a few rows of OpenBookQA and Social IQa are so, and others score them as they are.
_ROW_LAWS: dict[str, Callable[[list[str]], bool]] = {
    "be two or more": lambda texts: len(texts) < 2,
    "each have text": lambda texts: not all(texts),
}
_LAWS: dict[str, Callable[[list[str]], bool]] = {
    **_ROW_LAWS,
    "differ from each other": lambda texts: len(set(texts)) < len(texts),
}
