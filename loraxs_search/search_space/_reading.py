"""Checking a section against its model, with pydantic's faults in our words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from loraxs_search.search_space._document import Document, as_written
from loraxs_search.search_space._faults import KeyPath, must_be, one_of
from loraxs_search.tasks.kinds import Section

SectionT = TypeVar("SectionT", bound=Section)


def read_section(document: Document, path: KeyPath, model: type[SectionT], given: object) -> SectionT | None:
    """Validate one section; faults go to the document, and None comes back if there was one."""
    if not isinstance(given, dict):
        law = f"must hold keys (one of: {one_of(model.model_fields)})"
        document.faults.add(path, f"{law}, but got {as_written(document, path, given)}.")
        return None
    try:
        return model.model_validate(given)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            where = (*path, *detail["loc"])
            document.faults.add(where, _in_our_words(document, where, model, detail))
        return None


def _in_our_words(document: Document, path: KeyPath, model: type[Section], detail: ErrorDetails) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "missing":
        return "is required."
    if kind == "extra_forbidden":
        known = _section_at(model, detail["loc"][:-1]).model_fields
        return f"{must_be(path[-1], known)}, but got {str(path[-1])!r}."
    remedy = "; quote it to mean the text" if kind == "string_type" and isinstance(value, bool | int | float) else ""
    return f"{_law(kind, context, value)}, but got {as_written(document, path, value)}{remedy}."


def _law(kind: str, context: Mapping[str, Any], value: object) -> str:
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", context["expected"])
        return must_be(value, names)
    if kind == "value_error":
        return str(context["error"])
    if kind == "too_short":
        least = context["min_length"]
        return f"must hold at least {'one item' if least == 1 else f'{least} items'}"
    laws = {
        "greater_than_equal": "must be at least {ge}",
        "greater_than": "must be above {gt}",
        "less_than": "must be below {lt}",
        "less_than_equal": "must be at most {le}",
        "int_type": "must be an integer",
        "float_type": "must be a number",
        "finite_number": "must be a finite number",
        "string_type": "must be text",
        "string_unicode": "must be valid Unicode",
        "string_too_short": "must not be empty",
        "string_pattern_mismatch": "must be 64 hexadecimal digits in lower case",
        "list_type": "must be a list",
        "tuple_type": "must be a list",
        "model_type": "must be a mapping",
        "dict_type": "must be a mapping",
    }
    return laws.get(kind, f"must be valid ({kind})").format(**context)


def _section_at(model: type[Section], location: tuple[str | int, ...]) -> type[Section]:
    for part in location:
        if isinstance(part, str):  # a number is an item of a list
            model = next(_sections_in(model.model_fields[part].annotation))
    return model


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
