"""Questions to an adapter, in the forms in which callers give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loraxs_search.errors import UsageError
from loraxs_search.tasks._texts import check_question, composed, is_text

__all__ = ["check_question", "composed", "is_text", "listed", "question_rows", "shown_question"]


def question_rows(texts: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a request, each with its texts: a row is a text, or a tuple of several.

    What is in a row is left to the task's kind, which knows what it should be.

    Args:
        texts: A list of rows, or one text.
    Raises:
        UsageError: it is neither.
    """
    return [row if isinstance(row, tuple) else (row,) for row in listed(texts, "texts")]


def listed(texts: Any, name: str) -> list[Any]:
    """Return what a list holds; of one text, a list of one.

    Args:
        name: What messages call it.
    Raises:
        UsageError: it is neither.
    """
    if isinstance(texts, str):
        return [texts]
    if hasattr(texts, "columns"):  # it lists the names of its columns
        raise UsageError(
            f"`{name}` must be a text or a list of texts, but got {type(texts).__name__}.",
            hint='give one column, such as df["sentence"], or the rows as a list of tuples',
        )
    is_list = hasattr(texts, "__len__") and hasattr(texts, "__getitem__")
    if not is_list or isinstance(texts, bytes | Mapping):
        raise UsageError(
            f"`{name}` must be a text or a list of texts, but got {type(texts).__name__}.",
            hint='give ["one text", "another"], and of several columns the values of a row as a tuple',
        )
    return list(texts)


def shown_question(row: Sequence[Any]) -> str:
    """Return a row as people read it."""
    return " | ".join(shown_question(value) if isinstance(value, list) else str(value) for value in row)
