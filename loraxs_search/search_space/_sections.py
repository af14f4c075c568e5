"""The sections with fixed keys, read into records by pydantic; its faults in our words."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from loraxs_search.errors import must_be, one_of
from loraxs_search.search_space.document import Document, KeyPath

SectionT = TypeVar("SectionT")

# What pydantic finds, by the beginning of its name for it. The constraint and the value stand in braces.
_LAWS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "int_": "must be an integer",
    "float_": "must be a number",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
    "string_pattern": "must be 64 hexadecimal digits in lower case",
    "string_": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "model_": "must be a mapping",
    "dataclass_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "value_error": "{error}",
}


def keys_of(model: Any) -> list[str]:
    """Return the keys that a file may write of a section."""
    if dataclasses.is_dataclass(model):
        return [each.name for each in dataclasses.fields(model) if not each.metadata]
    return list(model.model_fields)


def read_section(
    document: Document, path: KeyPath, model: type[SectionT], given: object, also: Collection[str] = ()
) -> SectionT | None:
    """Validate one section; faults go to the document, and None comes back if there was one.

    Args:
        also: Keys that the section has beside the model's, which are read elsewhere.
    """
    if not isinstance(given, dict):
        law = f"must hold keys (one of: {one_of([*keys_of(model), *also])})"
        document.fault(path, f"{law}, but got {document.got(path, given)}.")
        return None
    known = [*keys_of(model), *also]
    for key in given.keys() - set(known):
        document.fault((*path, key), f"{must_be(key, known)}, but got {key!r}.")
    written = {key: value for key, value in given.items() if key in known and key not in also}
    read = read_value(document, path, model, written)
    return None if read is None or given.keys() - set(known) else read


def read_value(document: Document, path: KeyPath, model: Any, given: object) -> Any:
    """Validate a value as JSON, in which lists may be tuples; faults go to the document, then None comes back."""
    try:
        return _adapter(model).validate_json(json.dumps(given))
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            where = (*path, *(part for part in detail["loc"] if part != "[key]"))  # of a mapping's key: its name
            document.fault(where, _in_our_words(document, where, model, detail))
        return None


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _in_our_words(document: Document, path: KeyPath, model: Any, detail: ErrorDetails) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind in ("missing", "missing_argument"):
        return "is required."
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        for part in detail["loc"][:-1]:
            if isinstance(part, str):  # a number is an item of a list
                model = next(_sections_in(_annotation(model, part)))
        return f"{must_be(path[-1], keys_of(model))}, but got {str(path[-1])!r}."
    if kind == "literal_error":
        law = must_be(value, re.findall(r"'([^']*)'", context["expected"]))
    elif kind == "too_short":
        least = context["min_length"]
        law = f"must hold at least {'one item' if least == 1 else f'{least} items'}"
    else:
        found = (law for beginning, law in _LAWS.items() if kind.startswith(beginning))
        law = next(found, f"must be valid ({kind})").format(**context)
    remedy = "; quote it to mean the text" if kind == "string_type" and isinstance(value, bool | int | float) else ""
    return f"{law}, but got {document.got(path, value)}{remedy}."


def _annotation(model: Any, key: str) -> Any:
    fields = model.__pydantic_fields__ if hasattr(model, "__pydantic_fields__") else None
    return fields[key].annotation if fields else get_type_hints(model)[key]


def _sections_in(annotation: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(annotation) or hasattr(annotation, "model_fields"):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
