"""Listing the registered models that hold our adapters, page by page, at a cost that other models do not raise."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mlflow import MlflowClient

KIND, ADAPTER = "loraxs.kind", "adapter"
_ADAPTERS = f"tags.`{KIND}` = '{ADAPTER}'"
_MAX_PAGE = 1000  # MLflow's own limit
_OTHERS = 20  # factor sets and models of others among these, for which no second page is asked
_NEAR = 100


class Page(Protocol):
    """Registered models by name, each with its tags, aliases and latest versions, and how to ask for the next ones."""

    token: str | None

    def __iter__(self) -> Iterator[Any]: ...


# Filter, number of models, and the token of the page before.
Ask = Callable[[str | None, int, str | None], Page]


def asking(client: MlflowClient) -> Ask:
    """Return how MLflow's client asks for a page."""

    def ask(only: str | None, size: int, token: str | None) -> Page:
        with _uncollected():
            answer: Page = client.search_registered_models(
                only, max_results=size, order_by=["name ASC"], page_token=token
            )
            return answer

    return ask


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Pause garbage collection: a page of an embedded store makes tens of thousands of objects, no garbage."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def models(ask: Ask, limit: int | None = None) -> Iterator[Any]:
    """Yield the registered models of our adapters, by name; the first `limit` of them.

    Without a filter MLflow reads a page along its index, with one it looks at the tags of all models, three times for
    each page. So a store is asked with the filter only where most of it is somebody else's, as its first page tells.
    """
    size = _MAX_PAGE if limit is None else min(limit + _OTHERS, _MAX_PAGE)
    yield from itertools.islice(_pages(ask, size), limit)


def near(ask: Ask, task: str) -> list[str]:
    """Return names of tasks to suggest for an unknown one: those with the same beginning, and the first ones."""
    alike = f"name ILIKE '{task[:3]}%'"
    pages = ask(alike, _NEAR, None), ask(None, _NEAR, None)
    return sorted({model.name for page in pages for model in page if _is_adapter(model)})


def _is_adapter(model: Any) -> bool:
    return bool(model.tags.get(KIND) == ADAPTER)


def _pages(ask: Ask, size: int) -> Iterator[Any]:
    only, token, first = None, None, True
    while first or token:
        page = ask(only, size, token)
        models_of_page = list(page)
        adapters = [model for model in models_of_page if _is_adapter(model)]
        if first and page.token and 2 * len(adapters) < len(models_of_page):
            page = ask(only := _ADAPTERS, size, None)
            adapters = list(page)
        yield from adapters
        token, first = page.token, False
