"""`loraxs_search.init`: a space for rows, from Python."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraxs_search.errors import LoraxsError, UsageError
from loraxs_search.home import disk_faults, home, write_atomic
from loraxs_search.scaffold.answers import Choices
from loraxs_search.scaffold.draft import Draft, draft_space, task_name
from loraxs_search.search_space.load import load_space
from loraxs_search.search_space.space import Space
from loraxs_search.tasks.rows import is_text

log = logging.getLogger(__name__)


def init(  # noqa: PLR0913  # each is a keyword
    rows: str | Path | Any,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    labels: Sequence[Any] | None = None,
    kind: str | None = None,
    name: str | None = None,
    metric: str | None = None,
    base: str | None = None,
    max_length: int | None = None,
    drop_empty: bool = False,
    renamed: Mapping[str, str] | None = None,
    test: str | Path | None = None,
    force: bool = False,
    out: str | Path | None = None,
) -> DraftedSpace:
    """Write a first space for rows, and return it, to be launched or changed.

        space = loraxs_search.init(frame, text="review", label="stars", name="reviews")
        print(space)  # what was guessed
        loraxs_search.launch(space)

    What is None is guessed. Rows without a text or an answer, and labels that look misspelt, are errors.

    Args:
        rows: A pandas DataFrame, a file, or a data set of the hub (`OWNER/NAME`). A DataFrame's rows are kept in a file
            beside the space.
        text: Column with texts, or several.
        label: Column with answers.
        labels: All classes, in id order.
        kind: `sequence-classification`, `regression`, `token-classification`, `text-generation` or `multiple-choice`.
        name: Name of the task; a DataFrame needs one.
        metric: What the search goes by.
        base: Base model: a hub id or a folder.
        max_length: Tokens of a row.
        drop_empty: Leave out rows without a text or an answer.
        renamed: Labels as they are written, each with the one that is meant.
        test: A file of test rows.
        force: Overwrite `out`.
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
        labels=None if labels is None else tuple(map(str, labels)),
        metric=metric,
        base=base,
        max_length=max_length,
        drop_empty=drop_empty,
        renamed=tuple((renamed or {}).items()),
        test=None if test is None else str(test),
        in_python=True,
    )
    if out is not None and not force and Path(out).exists():
        raise UsageError(f"`out` must not exist, but {out} does.", hint="give another file, or force=True")
    frame = _lines(rows, name)
    data = frame if frame is not None else str(rows)
    digest = hashlib.sha256(f"{data if frame is not None else _identity(data)}\n{choices}".encode()).hexdigest()[:16]
    path = home() / "drafts" / digest / f"{task_name(name or data, choices)}.yaml" if out is None else Path(out)
    if frame is not None:
        data = str(path.with_suffix(".jsonl"))
        write_atomic(Path(data), frame)
    table: Any = rows
    index = None if frame is None else list(table.index)
    try:
        draft = draft_space(data, path, choices, index)
    except LoraxsError as error:  # written for the command line
        error.message, error.hint = _in_python(error.message), error.hint and _in_python(error.hint)
        error.args = (error.message,)
        raise
    guesses = {name: _in_python(value) for name, value in draft.guesses.items()}
    warnings = tuple(map(_in_python, draft.warnings))
    for warning in warnings:
        log.warning(warning)
    return DraftedSpace(**vars(save_draft(draft, path, force=force or out is None)), guesses=guesses, warnings=warnings)


@dataclass(frozen=True, repr=False)
class DraftedSpace(Space):
    """A space that `init` wrote; its text says what was guessed."""

    guesses: Mapping[str, str] = field(default_factory=dict, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        lines = [f"{name:<11} {value}" for name, value in self.guesses.items()]
        return "\n".join(
            [*lines, *(f"warning: {warning}" for warning in self.warnings), f"{'space':<11} {self.source}"]
        )


def _in_python(text: str) -> str:
    """Return a message with arguments in place of the command line's options."""
    named = re.sub(r"--drop-empty\b", "drop_empty=True", re.sub(r"--map\b", "renamed", text))
    return re.sub(r"--([a-z][a-z-]*)", lambda option: option[1].replace("-", "_"), named)


def save_draft(draft: Draft, path: Path, *, force: bool = False) -> Space:
    """Write a space, with its rows where they need another form, and return it once it has been checked.

    Args:
        force: Overwrite a copy of other rows.
    Raises:
        UsageError: where these rows would go is another file.
        SpaceError: it has faults; nothing is left at `path`.
    """
    draft.write(path, force=force)
    try:
        return load_space(str(path) if path.is_absolute() else f"./{path}")
    except LoraxsError:
        path.unlink()  # else the next try would find it there
        raise


def _identity(data: str) -> str:
    """Return what tells rows from others: where a file is and what it holds; of a data set of the hub its id."""
    path = Path(data).expanduser()
    if not path.exists():
        return data
    with disk_faults(path, "the data"):
        return f"{path.absolute()} {hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''}"


def _lines(rows: Any, name: str | None) -> str | None:
    """Return a DataFrame's rows as lines of JSON; None of what is no DataFrame."""
    if isinstance(rows, str | Path):
        return None
    if not (hasattr(rows, "to_dict") and hasattr(rows, "columns")):
        raise UsageError(
            f"`rows` must be a pandas DataFrame, a file or a data set of the hub, but got {type(rows).__name__}.",
            hint="give a path, or pandas.DataFrame(rows)",
        )
    if name is None:
        raise UsageError("`name` must be given with a DataFrame: it names the task.", hint='as in name="reviews"')
    names = [str(column) for column in rows.columns]
    if twice := [column for column in dict.fromkeys(names) if names.count(column) > 1]:
        raise UsageError(
            f"`rows` must name each column once, but has {', '.join(map(repr, twice))} twice.",
            hint="rename or remove one of the two",
        )
    records = rows.astype(object).where(rows.notna(), None).set_axis(names, axis=1).to_dict("records")
    lines = [json.dumps(record, ensure_ascii=False, default=_plain) for record in records]
    if faults := [row for row, line in enumerate(lines) if not is_text(line)]:
        raise UsageError(
            f"`rows` must be valid Unicode, but row {faults[0]} has half of a surrogate pair.",
            hint="encode it again, or remove it",
        )
    return "".join(f"{line}\n" for line in lines)


def _plain(value: Any) -> Any:
    """Return what JSON has no form for: numpy's values as Python's, times as ISO writes them, others as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
