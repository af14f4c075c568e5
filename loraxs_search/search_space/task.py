"""The `task` section: written out, or a task of the catalogue with some keys changed; and the laws between its keys."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, create_model

from loraxs_search.errors import UsageError, asking, meant, must_be, one_of, shortened
from loraxs_search.paths import user_path
from loraxs_search.records.literals import Count, Direction, Split, Text
from loraxs_search.records.task import MAX_NAME, DataSource, Task, registered_name
from loraxs_search.search_space.document import Document, KeyPath, as_mapping, parse_document, read_section, shown
from loraxs_search.search_space.parameter_specs import check_entry
from loraxs_search.shipped_spaces import shipped_task_path, shipped_tasks
from loraxs_search.tasks.kinds import KINDS, Names, Section, TaskKind, find_metric


def _variant(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError("must start with a lower-case letter or digit, and hold only those and _ -")
    return name


def _registry_safe(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or name == "latest":
        law = "must start with a lower-case letter or digit, hold only those and . _ -, and not be `latest`"
        raise ValueError(f"{law}, since the registry knows the task by it")
    return name


class TaskSection(Section):
    """What is learnt. `task: NAME` takes a well-known task, and `{use: NAME, ...}` one with changes."""

    name: Annotated[Text, AfterValidator(_registry_safe)]
    """The registry keeps the champion under this name: lower-case letters, digits, `.`, `_` and `-`."""
    variant: Annotated[Text, AfterValidator(_variant)] | None = None
    """A language, a customer: the registry keeps its own champion for it, as `NAME.VARIANT`."""
    kind: Annotated[Text, AfterValidator(partial(check_entry, KINDS, "a task kind"))]
    """What is learnt from a row."""
    data: DataSource
    """Where the rows come from."""
    metric: Text | None = None
    """Metric to search by, if it is not the first of `metrics`. Useful with `--set task.metric=f1`."""
    metrics: Names | None = None
    """Metrics to report, required unless there is `metric`. The search goes by the first one."""
    direction: Direction | None = None
    """May be left out: it is always the metric's own."""
    max_length: Count = 128
    """Tokens of the longest row, prompt and answer together. A longer text or prompt is cut; a longer answer is an
    error.
    """
    validation_rows: Count | None = None
    """How many validation rows to score at each report. The default is all. At the end, candidates are scored on all of
    them.
    """
    slices: Names | None = None
    """Columns that say which groups a row is of, such as a language or a source: promotion scores the test rows of each
    value, of which a column has at most 50. Adapters do not read them.
    """


@cache
def task_section(kind: type[TaskKind]) -> type[TaskSection]:
    """Return the section with the keys of a kind beside those that all tasks have."""
    bases: Any = (kind.section, TaskSection)
    section: type[TaskSection] = create_model(
        f"{kind.__name__}TaskSection", __base__=bases, __doc__=kind.section.__doc__
    )
    return section


class _TaskLaws:
    """The laws between a task's keys. Each looks only at keys that are sound, so that one fault hides no other."""

    def __init__(self, document: Document, given: Mapping[str, Any], folder: Path, kind: type[TaskKind] | None) -> None:
        self._document, self._given, self._folder, self._kind = document, given, folder, kind

    def check(self) -> None:
        """Report every broken law to the document."""
        self._check_names()
        if self._kind is not None:
            self._check_kind(self._kind)
        if isinstance(data := self._given.get("data"), dict):
            self._check_data(data)
            for split in as_mapping(data.get("data_files")):
                self._check_file(("data", "data_files", split))
        columns = self._sound("columns")
        read = [*(columns.values() if isinstance(columns, dict) else ()), self._given.get("label")]
        for index, name in enumerate(self._sound("slices") or ()):
            if name in read:
                law = "must be a column that groups rows, not one of texts or answers"
                self._fault(("slices", index), f"{law}, but got {shown(name)}.")

    def _check_names(self) -> None:
        for key in (("extract", "one_of"), ("option_names",)):  # YAML may read names as true or false
            names = self._sound(*key)
            for index, name in enumerate(names if isinstance(names, list) else ()):
                got = self._document.got(("task", *key, index), name)
                if isinstance(name, bool) and got != shown(name):
                    self._fault((*key, index), f"must be text, but got {got}; quote it to mean the text.")
        name, variant = self._sound("name"), self._sound("variant")
        if isinstance(name, str) and (length := len(registered_name(name, variant))) > MAX_NAME:
            law = f"must have at most {MAX_NAME} characters, with `variant` and the dot between them"
            self._fault(("name",), f"{law}, but got {length}.")

    def _check_kind(self, kind: type[TaskKind]) -> None:
        """Hold the kind's keys, with their defaults where they are left out, against its laws."""
        fields = kind.section.model_fields.items()
        defaults = {
            name: each.get_default(call_default_factory=True) for name, each in fields if not each.is_required()
        }
        keys = defaults | {name: self._given[name] for name, _ in fields if name in self._given}
        for path, message in list(kind.laws({name: keys[name] for name in keys if not self._is_faulty(name)})):
            if not self._is_faulty(*path):
                self._fault(path, message)
        self._check_metrics(kind, {name: keys[name] for name in keys if not self._is_faulty(name)})

    def _check_metrics(self, kind: type[TaskKind], keys: Mapping[str, Any]) -> None:
        metric, metrics, known = self._sound("metric"), self._sound("metrics"), kind.fitting_metrics(keys)
        if not metric and not metrics and not self._is_faulty("metric") and not self._is_faulty("metrics"):
            self._fault(("metrics",), f"is required: one or more of {one_of(known)}; the first is searched for.")
        named: list[tuple[KeyPath, str]] = [(("metrics", index), name) for index, name in enumerate(metrics or ())]
        for path, name in [*named, *([(("metric",), metric)] if metric else [])]:
            if fault := unfit_metric(kind, keys, name):
                self._fault(path, fault)
        searched = str(metric or next(iter(metrics or ()), ""))
        if searched in known and (fault := direction_fault(self._sound("direction"), searched)):
            self._fault(("direction",), fault)

    def _check_data(self, data: dict[str, Any]) -> None:
        hub, files = data.get("hub"), data.get("data_files")
        if (hub is None) == (files is None):
            got = "neither" if hub is None else "both"
            self._fault(("data",), f"must have one of: hub, data_files, but got {got}.")
        for key in ("config", "revision", "splits"):
            if hub is None and files is not None and data.get(key) is not None:
                self._fault(("data", key), "must stand beside hub; data_files name their splits themselves.")
        for key in ("data_files", "splits"):
            if isinstance(data.get(key), dict) and not _names_split(data[key], "train"):
                self._fault(("data", key, "train"), "is required.")
        for split in ("validation", "test"):
            others = [key for key in ("data_files", "splits") if _names_split(data.get(key), split)]
            if others and data.get(split) is not None:
                self._fault(("data", split), f"must be left out, since {others[0]}.{split} names these rows, too.")

    def _check_file(self, where: KeyPath) -> None:
        if not isinstance(path := self._sound(*where), str):
            return
        try:
            file = user_path(path, self._folder)
        except ValueError as error:
            self._fault(where, f"must be a file's name, but got {shown(path)}: {error}.")
            return
        if not file.is_file():
            got = f"{shown(path)}, and {file} {'is a folder' if file.is_dir() else 'does not exist'}"
            self._fault(where, f"must be a file, relative to this one, but got {got}.")

    def _sound(self, *keys: str | int) -> Any:
        value: Any = self._given
        for key in keys:
            value = as_mapping(value).get(key)
        return None if self._is_faulty(*keys) else value

    def _is_faulty(self, *keys: str | int) -> bool:
        return self._document.is_faulty("task", *keys)

    def _fault(self, inside: KeyPath, message: str) -> None:
        self._document.fault(("task", *inside), message)


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
    if section is None or kind is None or document.is_faulty("task"):
        return None
    return _record(section, kind, folder)


def _kind(given: object) -> type[TaskKind] | None:
    with contextlib.suppress(UsageError):
        return KINDS.get(str(as_mapping(given).get("kind")))
    return None


def _likeliest_kind(given: object) -> type[TaskKind]:
    """Return the kind that takes most of the keys that are written: what `kind` does not say, they do."""
    written = as_mapping(given).keys()
    return max(KINDS.importable().values(), key=lambda kind: len(written & kind.section.model_fields.keys()))


def _merged(entry: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    if any(key in changed for key in _SEARCHED):
        entry = {key: value for key, value in entry.items() if key not in _SEARCHED}
    merged = {**entry, **changed}
    for key in ("data", "columns", "generation"):
        own, known = changed.get(key), entry.get(key)
        if isinstance(own, dict) and isinstance(known, dict):
            merged[key] = _merged_data(known, own) if key == "data" else {**known, **own}
    for key, other in (("prompt", "messages"), ("messages", "prompt")):
        if key in changed and other not in changed:
            merged.pop(other, None)
    return merged


def _merged_data(known: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return where rows come from: of another source nothing stays, and a split comes from where it is named last."""
    if "hub" in own or "data_files" in own:
        return own
    kept = {name: value for name, value in known.items() if not _names_split(own.get("splits"), name)}
    if "splits" not in own and isinstance(known.get("splits"), dict):
        kept["splits"] = {split: name for split, name in known["splits"].items() if own.get(split) is None}
    return {**kept, **own}


def _names_split(names: object, split: str) -> bool:
    return as_mapping(names).get(split) is not None


def _catalogue_entry(document: Document, name: object) -> dict[str, Any] | None:
    path: KeyPath = ("task", "use") if ("task", "use") in document.places else ("task",)
    if not isinstance(name, str):
        document.fault(path, f"must be the name of a catalogue task, but got {shown(name)}.")
        return None
    if name not in (known := shipped_tasks()):
        document.fault(path, f"{must_be(name, known)}, but got {shortened(name)}.")
        return None
    return catalogue_entry(name).section


def catalogue_task(name: str) -> Task:
    """Return a task of the catalogue.

    Raises:
        UsageError: there is no such task; the message lists the known ones, nearest first.
    """
    document = Document(name)
    task = read_task(document, catalogue_entry(name).section, Path())
    if task is None:
        document.fail()
    return task


def unfit_metric(kind: TaskKind | type[TaskKind], keys: Mapping[str, Any], name: str) -> str | None:
    """Say why a metric cannot score a task of a kind with these keys; None if it can."""
    fitting = kind.fitting_metrics(keys)
    if name in fitting:
        return None
    law = f"must fit {kind.describe(keys)} (one of: {one_of(fitting, name)})"
    return f"{asking(law, name, fitting)}, but got {shown(name)}."


def meant_metrics(given: object) -> tuple[str, ...]:
    """Return the metrics that a faulty task section means, so that what must be among them can be checked too.

    None of them where one cannot be known.
    """
    section, kind = as_mapping(given), _kind(given)
    metrics, metric = section.get("metrics"), section.get("metric")
    names = [*(metrics if isinstance(metrics, list) else ()), *([metric] if metric else ())]
    if kind is None or not all(isinstance(name, str) for name in names):
        return ()
    likely = [name if name in kind.metrics else meant(name, kind.metrics) for name in names]
    return tuple(likely) if all(likely) else ()


def direction_fault(given: str | None, metric: str) -> str | None:
    """Say what is wrong with a `direction` beside a metric, whose own it must be."""
    known = find_metric(metric)
    if known is None or given in {None, known.direction}:
        return None
    return f"must be left out, or be {known.direction}, the direction of {metric}, but got {given}."


def _record(section: TaskSection, kind: type[TaskKind], folder: Path) -> Task:
    files = {split: str(user_path(path, folder)) for split, path in section.data.data_files.items()}
    splits: Mapping[Split, str] = section.data.splits or ({} if files else {"train": "train"})  # the rest is carved
    metrics = tuple(dict.fromkeys([*(section.metrics or ()), *([section.metric] if section.metric else ())]))
    metric = section.metric or metrics[0]
    return Task(
        name=section.name,
        kind=section.kind,
        source=replace(section.data, data_files=files, splits=splits),
        **kind.fields(section),
        metric=metric,
        metrics=metrics,
        direction=section.direction or kind.metrics[metric].direction,
        max_length=section.max_length,
        validation_rows=section.validation_rows,
        variant=section.variant,
        slices=tuple(section.slices or ()),
    )
