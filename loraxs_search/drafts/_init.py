"""`loraxs_search.init`: a space for rows, from Python."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraxs_search.drafts._choices import Choices
from loraxs_search.drafts._draft import Draft, draft_space, task_name
from loraxs_search.errors import LoraxsError, UsageError
from loraxs_search.home import home, write_atomic
from loraxs_search.search_space import Space, load_space

log = logging.getLogger(__name__)


def init(  # noqa: PLR0913  # each is a keyword
    rows: str | Path | Any,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    labels: Sequence[str] | None = None,
    kind: str | None = None,
    name: str | None = None,
    metric: str | None = None,
    base: str | None = None,
    max_length: int | None = None,
    drop_empty: bool = False,
    renamed: Mapping[str, str] | None = None,
    out: str | Path | None = None,
) -> Space:
    """Write a first space for rows, and return it, to be launched or changed.

        space = loraxs_search.init(frame, text="review", label="stars", name="reviews")
        loraxs_search.launch(space)

    What is None is guessed. Rows without a text or an answer, and labels that look misspelt, are errors.

    Args:
        rows: A pandas DataFrame, a file, or a data set of the hub (`OWNER/NAME`). A DataFrame's rows are kept in a file
            beside the space.
        text: Column with texts, or several.
        label: Column with answers.
        labels: All classes, in id order.
        kind: `sequence-classification`, `regression`, `text-generation` or `multiple-choice`.
        name: Name of the task; a DataFrame needs one.
        metric: What the search goes by.
        base: Base model: a hub id or a folder.
        max_length: Tokens of a row.
        drop_empty: Leave out rows without a text or an answer.
        renamed: Labels as they are written, each with the one that is meant.
        out: File for the space; by default one in the state folder.

    Raises:
        UndecidedError: something cannot be guessed; `option` says which keyword gives it.
        UsageError: what was given does not fit the rows, or `out` is there already.
        TaskDataError: the rows, or labels in them, are faulty.
    """
    texts = (text,) if isinstance(text, str) else tuple(text or ())
    choices = Choices(
        name=name,
        kind=kind,
        text=texts or None,
        label=label,
        labels=None if labels is None else tuple(labels),
        metric=metric,
        base=base,
        max_length=max_length,
        drop_empty=drop_empty,
        renamed=tuple((renamed or {}).items()),
    )
    if out is not None and Path(out).exists():
        raise UsageError(f"`out` must not exist, but {out} does.", hint="give another file, or remove it")
    frame = _lines(rows, name)
    data = frame if frame is not None else str(rows)
    digest = hashlib.sha256(f"{data}\n{choices}".encode()).hexdigest()[:16]
    path = home() / "drafts" / digest / f"{task_name(name or data, choices)}.yaml" if out is None else Path(out)
    if frame is not None:
        data = str(path.with_suffix(".jsonl"))
        write_atomic(Path(data), frame)
    draft = draft_space(data, path, choices)
    for warning in draft.warnings:
        log.warning(warning)
    return save_draft(draft, path)


def save_draft(draft: Draft, path: Path) -> Space:
    """Write a space, with its rows where they need another form, and return it once it has been checked.

    Raises:
        UsageError: where these rows would go is another file.
        SpaceError: it has faults; nothing is left at `path`.
    """
    draft.write(path)
    try:
        return load_space(str(path) if path.is_absolute() else f"./{path}")
    except LoraxsError:
        path.unlink()  # else the next try would find it there
        raise


def _lines(rows: Any, name: str | None) -> str | None:
    """Return a DataFrame's rows as lines of JSON; None of what is no DataFrame."""
    if isinstance(rows, str | Path):
        return None
    if not (hasattr(rows, "to_json") and hasattr(rows, "columns")):
        raise UsageError(
            f"`rows` must be a pandas DataFrame, a file or a data set of the hub, but got {type(rows).__name__}.",
            hint="give a path, or pandas.DataFrame(rows)",
        )
    if name is None:
        raise UsageError("`name` must be given with a DataFrame: it names the task.", hint='as in name="reviews"')
    return str(rows.to_json(orient="records", lines=True, force_ascii=False, date_format="iso", double_precision=15))
