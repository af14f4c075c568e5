"""The `task` section: written out, or a task of the catalogue with some keys changed; and the laws between its keys."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraxs_search.errors import LoraxsError, UsageError, asking, one_of
from loraxs_search.paths import user_path
from loraxs_search.records import DataSource, Split, SplitSource, Task
from loraxs_search.search_space._document import Document, KeyPath, as_written, parse_document, shown
from loraxs_search.search_space._sections import DataSection, SplitSection, TaskSection, read_section, task_section
from loraxs_search.shipped_spaces import shipped_task_path
from loraxs_search.tasks.kinds import KINDS, TaskKind


class _TaskLaws:
    """The laws between a task's keys. Each looks only at keys that are sound, so that one fault hides no other."""

    def __init__(self, document: Document, given: Mapping[str, Any], folder: Path, kind: type[TaskKind] | None) -> None:
        self._document, self._given, self._folder, self._kind = document, given, folder, kind

    def check(self) -> None:
        """Report every broken law to the document."""
        self._check_names()
        if self._kind is not None:
            for path, message in list(self._kind.laws(self._own_keys(self._kind))):
                if not self._faulty(*path):
                    self._fault(path, message)
            self._check_metrics(self._kind, self._own_keys(self._kind))
        self._check_data()

    def _check_names(self) -> None:
        """Refuse names that YAML reads as true or false though they are written otherwise."""
        for key in (("extract", "one_of"), ("option_names",)):
            names = self._sound(*key)
            for index, name in enumerate(names if isinstance(names, list) else ()):
                got = as_written(self._document, ("task", *key, index), name)
                if isinstance(name, bool) and got != shown(name):
                    self._fault((*key, index), f"must be text, but got {got}; quote it to mean the text.")

    def _own_keys(self, kind: type[TaskKind]) -> dict[str, Any]:
        """Return the kind's keys that are sound, with their defaults where they are left out."""
        defaults = {
            name: field.get_default(call_default_factory=True)
            for name, field in kind.section.model_fields.items()
            if not field.is_required()
        }
        given = {name: self._given[name] for name in kind.section.model_fields if name in self._given}
        return {name: value for name, value in (defaults | given).items() if not self._faulty(name)}

    def _check_metrics(self, kind: type[TaskKind], keys: Mapping[str, Any]) -> None:
        metric, metrics = self._sound("metric"), self._sound("metrics")
        known = kind.fitting_metrics(keys)
        if not metric and not metrics and not self._faulty("metric") and not self._faulty("metrics"):
            self._fault(("metrics",), f"is required: one or more of {one_of(known)}; the first is searched for.")
        named: list[tuple[KeyPath, str]] = [(("metrics", index), name) for index, name in enumerate(metrics or ())]
        for path, name in [*named, *([(("metric",), metric)] if metric else [])]:
            if name not in known:
                fits = f"must fit {kind.describe(keys)} (one of: {one_of(known, name)})"
                self._fault(path, f"{asking(fits, name, known)}, but got {shown(name)}.")

    def _check_data(self) -> None:
        data = self._given.get("data")
        if not isinstance(data, dict):
            return
        hub, files = data.get("hub"), data.get("data_files")
        if (hub is None) == (files is None):
            got = "neither" if hub is None else "both"
            self._fault(("data",), f"must have one of: hub, data_files, but got {got}.")
        for key in ("config", "revision", "splits"):
            if hub is None and files is not None and data.get(key) is not None:
                self._fault(("data", key), "must stand beside hub; data_files name their splits themselves.")
        for split in files if isinstance(files, dict) else ():
            path = self._sound("data", "data_files", split)
            if isinstance(path, str):
                self._check_file(split, path)

    def _check_file(self, split: str, path: str) -> None:
        try:
            file = user_path(path, self._folder)
        except ValueError as error:
            self._fault(("data", "data_files", split), f"must be a file's name, but got {shown(path)}: {error}.")
            return
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            got = f"{shown(path)}, and {file} {what}"
            self._fault(("data", "data_files", split), f"must be a file, relative to this one, but got {got}.")

    def _sound(self, *keys: str) -> Any:
        value: Any = self._given
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return None if self._faulty(*keys) else value

    def _faulty(self, *keys: str) -> bool:
        return self._document.faults.at_or_below(("task", *keys))

    def _fault(self, inside: KeyPath, message: str) -> None:
        self._document.faults.add(("task", *inside), message)


@dataclass(frozen=True)
class CatalogueEntry:
    """A well-known task.

    Args:
        text: Its file: the task's section, below comments that say what it is and what is known of it.
        section: The task's section, as a space file has it.
    """

    text: str
    section: dict[str, Any]

    @property
    def comments(self) -> list[str]:
        """What the file says of the task: what it is in a line, then its pages, rows and notes."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("# ")]


def catalogue_entry(name: str) -> CatalogueEntry:
    """Return a task of the catalogue.

    Raises:
        UsageError: there is no such task; the message lists the known ones, nearest first.
    """
    path = shipped_task_path(name)
    text = path.read_text(encoding="utf-8")
    return CatalogueEntry(text, parse_document(text, str(path)).data["task"])


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
        _TaskLaws(document, given, folder, kind).check()
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
