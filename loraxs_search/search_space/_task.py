"""The `task` section: written out, or a catalogue entry with some keys changed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraxs_search.errors import LoraxsError, UsageError
from loraxs_search.paths import user_path
from loraxs_search.records import DataSource, Split, SplitSource, Task
from loraxs_search.search_space._catalogue import catalogue_entry
from loraxs_search.search_space._document import Document
from loraxs_search.search_space._faults import KeyPath, shown
from loraxs_search.search_space._reading import read_section
from loraxs_search.search_space._sections import DataSection, SplitSection, TaskSection, task_section
from loraxs_search.search_space._task_laws import TaskLaws
from loraxs_search.tasks.kinds import KINDS, TaskKind

_SEARCHED = ("metric", "metrics", "direction")  # these belong together: changing one leaves the entry's others behind


def read_task(document: Document, given: object, folder: Path) -> Task | None:
    """Read the task; data files are taken relative to `folder`. Faults go to the document."""
    if isinstance(given, str):
        given = {"use": given}
    if isinstance(given, dict) and "use" in given:
        entry = _catalogue_entry(document, given["use"])
        if entry is None:
            return None
        given = _merged(entry, {key: value for key, value in given.items() if key != "use"})
    kind = _kind(given)
    section = read_section(document, ("task",), task_section(kind or _likeliest_kind(given)), given)
    if isinstance(given, dict):
        TaskLaws(document, given, folder, kind).check()
    if section is None or kind is None or document.faults.at_or_below(("task",)):
        return None
    return _record(section, kind, folder)


def _kind(given: object) -> type[TaskKind] | None:
    name = given.get("kind") if isinstance(given, dict) else None
    with contextlib.suppress(UsageError):
        return KINDS.get(name) if isinstance(name, str) else None
    return None


def _likeliest_kind(given: object) -> type[TaskKind]:
    """Return the kind that takes most of the keys that are written: what `kind` does not say, they do."""
    written = set(given) if isinstance(given, dict) else set()
    return max(KINDS.importable().values(), key=lambda kind: len(written & kind.section.model_fields.keys()))


def _merged(entry: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    if any(key in changed for key in _SEARCHED):
        entry = {key: value for key, value in entry.items() if key not in _SEARCHED}
    merged = {**entry, **changed}
    for key, anew in (("data", ("hub", "data_files")), ("columns", ()), ("generation", ())):
        own, known = changed.get(key), entry.get(key)
        if isinstance(own, dict) and isinstance(known, dict) and not any(source in own for source in anew):
            merged[key] = {**known, **own}  # of another source, nothing stays
    for key, other in (("prompt", "messages"), ("messages", "prompt")):
        if key in changed and other not in changed:
            merged.pop(other, None)
    return merged


def _catalogue_entry(document: Document, name: object) -> dict[str, Any] | None:
    path: KeyPath = ("task", "use") if ("task", "use") in document.locations else ("task",)
    if not isinstance(name, str):
        document.faults.add(path, f"must be the name of a catalogue task, but got {shown(name)}.")
        return None
    try:
        return catalogue_entry(name).section
    except LoraxsError as error:
        question, _, law = error.message.rpartition("`task` ")
        document.faults.add(path, f"{question[:1].lower()}{question[1:]}It {law}" if question else law)
        return None


def catalogue_task(name: str) -> Task:
    """Return a task of the catalogue.

    Raises:
        UsageError: there is no such task; the message lists the known ones, nearest first.
    """
    document = Document(name)
    task = read_task(document, catalogue_entry(name).section, Path())
    if task is None:
        document.faults.fail(name, document.locations)
    return task


def _record(section: TaskSection, kind: type[TaskKind], folder: Path) -> Task:
    metrics = tuple(dict.fromkeys([*(section.metrics or ()), *([section.metric] if section.metric else ())]))
    metric = section.metric or metrics[0]
    return Task(
        name=section.name,
        kind=section.kind,
        source=_source(section.data, folder),
        **kind.fields(section),
        metric=metric,
        metrics=metrics,
        direction=section.direction or kind.metrics[metric].direction,
        max_length=section.max_length,
        validation_rows=section.validation_rows,
    )


def _source(data: DataSection, folder: Path) -> DataSource:
    own: dict[Split, SplitSection | None] = {"validation": data.validation, "test": data.test}
    elsewhere = {split: SplitSource(**other.model_dump()) for split, other in own.items() if other is not None}
    source = DataSource(elsewhere=elsewhere, max_characters=data.max_characters, carved_rows=data.carved_rows)
    if data.data_files is not None:
        files = {split: str(user_path(path, folder)) for split, path in data.data_files if path is not None}
        return replace(source, data_files=files)
    splits: dict[Split, str] = {"train": "train"}  # what is missing is carved from it
    if data.splits is not None:
        splits = data.splits.model_dump(exclude_none=True)  # type: ignore[assignment]
    return replace(source, hub=data.hub, config=data.config, revision=data.revision, splits=splits)
