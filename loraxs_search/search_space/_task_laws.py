"""The laws between the keys of a task: what its kind allows, and where its rows come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraxs_search.paths import user_path
from loraxs_search.records import TaskKind
from loraxs_search.search_space._document import Document
from loraxs_search.search_space._faults import KeyPath, one_of, shown


class TaskLaws:
    """The laws between a task's keys. Each looks only at keys that are sound, so that one fault hides no other."""

    def __init__(self, document: Document, given: Mapping[str, Any], folder: Path) -> None:
        self._document = document
        self._given = given
        self._folder = folder

    def check(self) -> None:
        """Tell every broken law to the document."""
        kind, labels = self._sound("kind"), self._sound("labels")
        if kind == "regression" and labels:
            self._fault(("labels",), f"must be left out for kind: regression, but got {shown(labels)}.")
        if kind == "sequence-classification" and not self._faulty("labels") and len(labels or ()) < 2:
            self._fault(("labels",), f"must name at least two labels, in id order, but got {shown(labels or [])}.")
        self._check_metrics(kind, None if self._faulty("labels") else len(labels or ()))
        self._check_data()

    def _check_metrics(self, kind: TaskKind | None, num_labels: int | None) -> None:
        metric, metrics = self._sound("metric"), self._sound("metrics")
        if kind is None:
            return
        known = _fitting(kind, num_labels)
        if not metric and not metrics and not self._faulty("metric") and not self._faulty("metrics"):
            self._fault(("metrics",), f"is required: one or more of {one_of(known)}; the first is searched for.")
        named: list[tuple[KeyPath, str]] = [(("metrics", index), name) for index, name in enumerate(metrics or ())]
        for path, name in [*named, *([(("metric",), metric)] if metric else [])]:
            if name not in known:
                task = kind if kind == "regression" or num_labels is None else f"{kind} with {num_labels} labels"
                self._fault(path, f"must fit {task} (one of: {one_of(known, name)}), but got {shown(name)}.")

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


def _fitting(kind: TaskKind, num_labels: int | None) -> list[str]:
    """The metrics that can score such a task; any number of labels when it is not known."""
    from loraxs_search.tasks.metrics import METRICS

    return [
        m.name
        for m in METRICS.values()
        if kind in m.kinds and (num_labels is None or m.num_labels in (None, num_labels))
    ]
