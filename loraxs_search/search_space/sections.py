"""The sections `task`, `search` and `promotion` of a space, and the laws between their keys.

A task is written out, or one of the catalogue with some keys changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import create_model

from loraxs_search.errors import UsageError, asking, must_be, one_of, shortened, unknown_name
from loraxs_search.home import SHIPPED, shipped_tasks, user_path
from loraxs_search.methods._base import Method
from loraxs_search.plugins import EntryPoints, ParameterSpec
from loraxs_search.records.codec import Accuracy, Count, Direction, Law, Split, Text, matching
from loraxs_search.records.search import COVERAGE, NEGATIVE_FLIPS, SLICE_LOSS, PromotionRule, SearchPlan
from loraxs_search.records.task import MAX_NAME, DataSource, Task
from loraxs_search.samplers import SAMPLERS
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search_space.document import Document, KeyPath, as_mapping, parse_document, read_section, shown
from loraxs_search.search_space.parameters import PARAMETERS, Parameter, check_entry
from loraxs_search.search_space.space import searched_parameters
from loraxs_search.tasks.kinds import KINDS, Names, Section, TaskKind, find_metric, kind_of

_NAME = "(?!latest$)[a-z0-9][a-z0-9._-]*"
_NAME_LAW = (
    "must start with a lower-case letter or digit, hold only those and . _ -, and not be `latest`, since the registry"
    " knows the task by it"
)
_VARIANT_LAW = "must start with a lower-case letter or digit, and hold only those and _ -"


_MOST_POINTS = 8  # a version's record in MLflow has room for these


def _increasing(points: Any) -> Any:
    """Return operating points, which are to increase; what is no number is refused elsewhere.

    Raises:
        ValueError: they do not, or there are too many.
    """
    numbers = [it for it in points if isinstance(it, int | float)] if isinstance(points, list) else []
    if len(numbers) > _MOST_POINTS or any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
        raise ValueError(f"must be at most {_MOST_POINTS} numbers that increase")
    return points


class TaskSection(Section):
    """What is learnt. `task: NAME` takes a well-known task, and `{use: NAME, ...}` one with changes."""

    name: Annotated[Text, matching(_NAME, _NAME_LAW)]
    """The registry keeps the champion under this name: lower-case letters, digits, `.`, `_` and `-`."""
    variant: Annotated[Text, matching("[a-z0-9][a-z0-9_-]*", _VARIANT_LAW)] | None = None
    """A language, a customer: the registry keeps its own champion for it, as `NAME.VARIANT`."""
    kind: Annotated[Text, Law(partial(check_entry, KINDS, "a task kind"))]
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
    operating_points: Annotated[list[Accuracy], Law(_increasing)] = [*Task.operating_points]  # noqa: RUF012  # pydantic copies it
    """Accuracies to promise where an adapter is sure. At the end of a search, validation rows choose for each the least
    probability from which answers are right as often, and test rows measure it: `predict --sure 0.95` then answers only
    such rows. For kinds whose answers have a probability; `[]` chooses none.
    """
    question: Text | None = None
    """The question that the task answers, such as `Is this spam?`: `serve` gives questions with these instructions to
    it, at `/v1/decisions` and `/v1/systemone`.
    """


@cache
def task_section(kind: type[TaskKind]) -> type[TaskSection]:
    """Return the section with the keys of a kind beside those that all tasks have."""
    bases: Any = (kind.section, TaskSection)
    section: type[TaskSection] = create_model(
        f"{kind.__name__}TaskSection", __base__=bases, __doc__=kind.section.__doc__
    )
    return section


def _check_laws(document: Document, given: Mapping[str, Any], folder: Path, kind: type[TaskKind] | None) -> None:
    """Report every broken law between a task's keys; it looks only at sound keys, so that one fault hides no other."""
    for key in (("extract", "one_of"), ("option_names",)):  # YAML may read names as true or false
        names = _sound(document, given, *key)
        for index, name in enumerate(names if isinstance(names, list) else ()):
            got = document.got(("task", *key, index), name)
            if isinstance(name, bool) and got != shown(name):
                document.fault(("task", *key, index), f"must be text, but got {got}; quote it to mean the text.")
    name, variant = _sound(document, given, "name"), _sound(document, given, "variant")
    if isinstance(name, str) and (length := len(".".join(filter(None, (name, variant))))) > MAX_NAME:
        law = f"must have at most {MAX_NAME} characters, with `variant` and the dot between them"
        document.fault(("task", "name"), f"{law}, but got {length}.")
    if kind is not None:
        _check_kind(document, given, kind)
    if isinstance(data := given.get("data"), dict):
        _check_data(document, data, folder)
    columns = _sound(document, given, "columns")
    read = [*(columns.values() if isinstance(columns, dict) else ()), given.get("label")]
    for index, name in enumerate(_sound(document, given, "slices") or ()):
        if name in read:
            document.refuse(
                ("task", "slices", index), "must be a column that groups rows, not one of texts or answers", name
            )


def _check_kind(document: Document, given: Mapping[str, Any], kind: type[TaskKind]) -> None:
    """Hold the kind's keys, with their defaults where they are left out, and the metrics against its laws."""
    fields = kind.section.model_fields.items()
    keys = {key: each.get_default(call_default_factory=True) for key, each in fields if not each.is_required()}
    keys |= {key: given[key] for key, _ in fields if key in given}
    keys = {key: value for key, value in keys.items() if not document.is_faulty("task", key)}
    for path, message in list(kind.laws(keys)):
        if not document.is_faulty("task", *path):
            document.fault(("task", *path), message)
    keys = {key: value for key, value in keys.items() if not document.is_faulty("task", key)}
    metric, metrics = _sound(document, given, "metric"), _sound(document, given, "metrics")
    unfit, is_faulty = kind.unfit_metrics(keys), any(document.is_faulty("task", key) for key in ("metric", "metrics"))
    known = [name for name in kind.metrics if name not in unfit]
    if not metric and not metrics and not is_faulty:
        law = f"is required: one or more of {one_of(known)}; the first is searched for."
        document.fault(("task", "metrics"), law)
    named: list[tuple[KeyPath, str]] = [(("metrics", index), name) for index, name in enumerate(metrics or ())]
    for here, name in [*named, *([(("metric",), metric)] if metric else [])]:
        if fault := _unfit_metric(kind, keys, name):
            document.fault(("task", *here), fault)
    searched = str(metric or next(iter(metrics or ()), ""))
    if searched in known and (fault := _direction_fault(_sound(document, given, "direction"), searched)):
        document.fault(("task", "direction"), fault)


def _sound(document: Document, given: Mapping[str, Any], *keys: str) -> Any:
    """Return the value of a key of the task; None if it is faulty or not there."""
    value: Any = given
    for key in keys:
        value = as_mapping(value).get(key)
    return None if document.is_faulty("task", *keys) else value


def _check_data(document: Document, data: dict[str, Any], folder: Path) -> None:
    """Report what is wrong between the keys of `task.data`, and files that are not there."""
    where: KeyPath = ("task", "data")
    hub, files = data.get("hub"), data.get("data_files")
    if (hub is None) == (files is None):
        document.fault(where, f"must have one of: hub, data_files, but got {'neither' if hub is None else 'both'}.")
    for key in ("config", "revision", "splits"):
        if hub is None and files is not None and data.get(key) is not None:
            document.fault((*where, key), "must stand beside hub; data_files name their splits themselves.")
    for key in ("data_files", "splits"):
        if isinstance(data.get(key), dict) and data[key].get("train") is None:
            document.fault((*where, key, "train"), "is required.")
    for split in ("validation", "test"):
        others = [key for key in ("data_files", "splits") if as_mapping(data.get(key)).get(split) is not None]
        if others and data.get(split) is not None:
            law = f"must be left out, since {others[0]}.{split} names these rows, too."
            document.fault((*where, split), law)
    for split, path in as_mapping(files).items():
        here = (*where, "data_files", split)
        if not isinstance(path, str) or document.is_faulty(*here):
            continue
        try:
            file = user_path(path, folder)
        except ValueError as error:
            document.refuse(here, "must be a file's name", path, f": {error}")
            continue
        if not file.is_file():
            got = f"{shown(path)}, and {file} {'is a folder' if file.is_dir() else 'does not exist'}"
            document.fault(here, f"must be a file, relative to this one, but got {got}.")


def catalogue_entry(name: str) -> tuple[str, dict[str, Any]]:
    """Return the file of a task of the catalogue, which begins with comments, and the task's section in it.

    Raises:
        UsageError: there is no such task; the message lists the known ones, nearest first.
    """
    if name not in (known := shipped_tasks()):
        raise UsageError(unknown_name("task", name, known), hint="`loraxs-search tasks ls` says what each one is")
    path = SHIPPED / "tasks" / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    return text, parse_document(text, str(path)).data["task"]


_OF_METRICS, _OF_METHODS = "must be one of the task's metrics", "must be among the space's methods"
_SEARCHED = ("metric", "metrics", "direction")  # these belong together: changing one leaves the entry's others behind


def read_task(document: Document, given: object, folder: Path) -> Task | None:
    """Read the task; data files are taken relative to `folder`. Faults go to the document."""
    if isinstance(given, str):
        given = {"use": given}
    if isinstance(given, dict) and "use" in given:
        path: KeyPath = ("task", "use") if ("task", "use") in document.places else ("task",)
        if not isinstance(name := given["use"], str):
            document.refuse(path, "must be the name of a catalogue task", name)
            return None
        if name not in (known := shipped_tasks()):
            document.fault(path, f"{must_be(name, known)}, but got {shortened(name)}.")
            return None
        given = _merged(catalogue_entry(name)[1], {key: it for key, it in given.items() if key != "use"})
    keys, kinds = as_mapping(given), KINDS.importable()
    kind = kinds.get(str(keys.get("kind")))
    # What `kind` does not say, the keys do: most of them are of one.
    likeliest = kind or max(kinds.values(), key=lambda each: len(keys.keys() & each.section.model_fields.keys()))
    section = read_section(document, ("task",), task_section(likeliest), given)
    if isinstance(given, dict):
        _check_laws(document, given, folder, kind)
    if section is None or kind is None or document.is_faulty("task"):
        return None
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
        operating_points=tuple(section.operating_points),
        question=section.question,
    )


def _merged(entry: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of the catalogue with some keys changed."""
    if any(key in changed for key in _SEARCHED):
        entry = {key: value for key, value in entry.items() if key not in _SEARCHED}
    merged = {**entry, **changed}
    for key in ("data", "columns", "generation"):
        own, known = changed.get(key), entry.get(key)
        if not isinstance(own, dict) or not isinstance(known, dict):
            continue
        if key == "data" and ("hub" in own or "data_files" in own):
            continue  # of another source nothing stays
        if key == "data":  # a split comes from where it is named last
            named = as_mapping(own.get("splits"))
            known = {name: value for name, value in known.items() if named.get(name) is None}
            if "splits" not in own and isinstance(known.get("splits"), dict):
                splits = {split: name for split, name in known["splits"].items() if own.get(split) is None}
                known["splits"] = splits
        merged[key] = {**known, **own}
    for key, other in (("prompt", "messages"), ("messages", "prompt")):
        if key in changed and other not in changed:
            merged.pop(other, None)
    return merged


def _unfit_metric(kind: TaskKind | type[TaskKind], keys: Mapping[str, Any], name: str) -> str | None:
    """Say why a metric cannot score a task of a kind with these keys; None if it can."""
    unfit = kind.unfit_metrics(keys)
    fitting = [known for known in kind.metrics if known not in unfit]
    if name in fitting:
        return None
    has = f" with {unfit[name]}" if name in unfit else ""
    law = f"must fit {kind.name}{has} (one of: {one_of(fitting, name)})"
    return f"{asking(law, name, fitting)}, but got {shown(name)}."


def _direction_fault(given: str | None, metric: str) -> str | None:
    """Say what is wrong with a `direction` beside a metric, whose own it must be."""
    known = find_metric(metric)
    if known is None or given in {None, known.direction}:
        return None
    return f"must be left out, or be {known.direction}, the direction of {metric}, but got {given}."


# ---- search and promotion ----
def entry_keys() -> dict[str, ParameterSpec]:
    """Return every key that a scheduler or sampler takes; of two that take one, the first one's.

    A space may hold keys of a scheduler that it does not use: `--set search.scheduler=none` is enough to do without.
    """
    taken = [scheduler.parameters for scheduler in SCHEDULERS.importable().values()]
    taken += [sampler.parameters for sampler in SAMPLERS.importable().values()]
    return {name: next(own[name] for own in taken if name in own) for own in taken for name in own}


def read_search(
    document: Document, task: Task | None, parameters: Mapping[str, Parameter]
) -> tuple[SearchPlan, Task | None]:
    """Read how to search (the defaults after a fault), and what the running trials of the task are compared by."""
    # A section whose every line is commented out is null in YAML: it says nothing, so the defaults stand.
    keys, given = entry_keys(), as_mapping(document.data).get("search") or {}
    plan, written, params = read_section(document, ("search",), SearchPlan, given, keys), as_mapping(given), {}
    for name, key in keys.items():
        try:
            params[name] = key.check(written.get(name, key.default))
        except ValueError as error:
            document.refuse(("search", name), str(error), written[name])
    registries: dict[str, EntryPoints[Any]] = {"scheduler": SCHEDULERS, "sampler": SAMPLERS}
    for name, registry in registries.items():
        if isinstance(entry := written.get(name), str):
            try:
                check_entry(registry, f"a {name}", entry)
            except ValueError as error:
                document.refuse(("search", name), str(error), entry)
    pace = {key: written.get(key, getattr(SearchPlan, key)) for key in ("report_every", "max_steps")}
    is_sound = not any(document.is_faulty("search", key) for key in pace)
    if is_sound and pace["report_every"] > pace["max_steps"]:
        got = " and ".join(f"{key}={value}" for key, value in pace.items())
        document.fault(("search", "report_every"), f"must be at most max_steps, but got {got}.")
    if plan is None or document.is_faulty("search"):
        plan = SearchPlan()
    else:
        taken = SCHEDULERS.get(plan.scheduler).parameters.keys() | SAMPLERS.get(plan.sampler).parameters.keys()
        plan = replace(plan, params={name: value for name, value in params.items() if name in taken})
        if not document.is_faulty(PARAMETERS):
            for fault in SAMPLERS.get(plan.sampler)(plan, searched_parameters(parameters)).faults():
                document.fault(("search", "sampler"), fault)
    where, metric = ("search", "metric"), written.get("metric")
    if document.is_faulty(*where):
        return plan, task
    if task is None:
        if metric is not None and find_metric(metric) is None:
            document.refuse(where, "must be the name of a metric", metric)
        return plan, None
    kind = kind_of(task)
    own = {"labels": task.labels, **task.settings}
    if metric is not None and (unfit := _unfit_metric(kind, own, metric)):
        document.fault(where, unfit)
    elif (reported := metric or kind.report_metric or task.metric) != task.metric:
        task = replace(task, report_metric=reported, report_direction=kind.metrics[reported].direction)
    return plan, task


def read_promotion(document: Document, task: Task | None, methods: Mapping[str, Method]) -> PromotionRule:
    """Read the rule, and hold it against the task and the methods; the default comes back if there is a fault."""
    sections = as_mapping(document.data)
    given = sections.get("promotion") or {}
    rule, keys = read_section(document, ("promotion",), PromotionRule, given), as_mapping(given)
    sound = {key: value for key, value in keys.items() if not document.is_faulty("promotion", key)}
    guards, metric = as_mapping(keys.get("guards")), keys.get("metric")

    def fault(key: str, law: str) -> None:
        document.fault(("promotion", key), law)

    metrics: Sequence[str] = task.metrics if task else ()
    if task is None and not document.is_faulty("task", "metrics"):  # the section has another fault
        metrics = as_mapping(sections.get("task")).get("metrics") or ()
    named = [
        ("metric", metric),
        *(("guards", name) for name in guards if name not in (NEGATIVE_FLIPS, SLICE_LOSS, COVERAGE)),
    ]
    for key, name in named:
        if isinstance(name, str) and metrics and name not in metrics:
            fault(key, f"{must_be(name, metrics, _OF_METRICS)}, but got {shown(name)}.")
    decides, direction = metric or (task.metric if task else None), sound.get("direction")
    if (
        decides is not None
        and decides in metrics
        and isinstance(direction, str)
        and (law := _direction_fault(direction, decides))
    ):
        fault("direction", law)
    if keys.get("choose") == "smallest":
        if not keys.get("tolerance", PromotionRule.tolerance):
            law = "smallest must stand beside a tolerance, which says what fewer bytes may cost"
            fault("choose", f"{law}, but there is none; write tolerance: 0.005, or choose: best.")
        if sound.get("candidates", PromotionRule.candidates) == 1:
            law = "must be at least 2 beside choose: smallest, since tolerance counts from the best, but got 1."
            fault("candidates", law)
    if SLICE_LOSS in guards and as_mapping(sections.get("task")).get("slices") is None:
        fault("guards", f"must stand beside `task.slices` where it names {SLICE_LOSS}.")
    if NEGATIVE_FLIPS in guards and task is not None and not kind_of(task).has_right_answers:
        fault("guards", f"must not name {NEGATIVE_FLIPS}: the task's answers are numbers, neither right nor wrong.")
    if COVERAGE in guards and task is not None and not (kind_of(task).gives_confidences and task.operating_points):
        fault("guards", f"must not name {COVERAGE}: the task has no operating points.")
    for name in rule.methods if rule is not None and methods else ():
        if name not in methods:
            fault("methods", f"{must_be(name, methods, _OF_METHODS)}, but got {shown(name)}.")
        elif not methods[name].has_adapter:
            fault("methods", f"must have adapters, but of {name} only metrics are recorded.")
    return rule or PromotionRule()
