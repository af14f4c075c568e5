"""The base of sections of a space file: fixed keys, and the types of their values."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from loraxs_search.tasks.rows import composed

Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, StringConstraints(min_length=1)]


class Section(BaseModel):
    """Keys are fixed, and a value is of its type as written: no text for a number, no 1 for true.

    The docstrings of sections and of their keys stand in search_spaces/REFERENCE.md and in the JSON Schema.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


def distinct(names: list[str]) -> list[str]:
    """Return names that all look different.

    Raises:
        ValueError: one stands twice.
    """
    shown = [composed(name) for name in names]
    for index, name in enumerate(shown):
        if name in shown[:index]:
            raise ValueError(f"must name each once, without a second {name!r}")
    return names


Names = Annotated[list[Text], Field(min_length=1), AfterValidator(distinct)]
