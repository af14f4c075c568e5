"""An option's value that cannot be read, in our words: Typer says it in pydantic's."""

from __future__ import annotations

import re
from typing import Any

from loraxs_search.errors import shortened, unknown_name

_LAWS = {
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
}
_CHOICES = re.compile(r"is not one of (.*)\.?$")


def bad_value(error: Any) -> str | None:
    """Return what a value must be, and what it is; None where that is not known.

    Args:
        error: What Typer raises of a parameter.
    """
    parameter, details = getattr(error, "param", None), getattr(error.__cause__, "errors", None)
    if parameter is None or details is None:
        return None
    name = next((option for option in parameter.opts if option.startswith("--")), parameter.name)
    detail = details()[0]
    if detail["type"] in _LAWS:
        law = _LAWS[detail["type"]].format(**detail.get("ctx", {}))
        return f"`{name}` must be {law}, but got {shortened(detail['input'])}."
    choices = _CHOICES.search(detail["msg"])
    return unknown_name(name, detail["input"], re.findall(r"'([^']*)'", choices[1])) if choices else None
