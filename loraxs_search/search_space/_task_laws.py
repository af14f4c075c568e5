"""The laws between the keys of a task: what its kind allows, and where its rows come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraxs_search.paths import user_path
from loraxs_search.search_space._document import Document, as_written
from loraxs_search.search_space._faults import KeyPath, asking, one_of, shown
from loraxs_search.tasks.kinds import TaskKind


class TaskLaws:
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
