"""The base of sections of a space file: fixed keys, and the types of their values."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from loraxs_search.records.literals import SECTION, Count, Text, distinct

__all__ = ["Count", "Names", "Section", "Text", "distinct"]


class Section(BaseModel):
    """Keys are fixed, and a value is of its type as written: no text for a number, no 1 for true.

    The docstrings of sections and of their keys stand in search_spaces/REFERENCE.md and in the JSON Schema.
    """

    model_config = ConfigDict(**SECTION)  # type: ignore[typeddict-item]


Names = Annotated[list[Text], Field(min_length=1), AfterValidator(distinct)]
