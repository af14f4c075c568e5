"""A file, its name or its text -> `Space`, or one error with every fault in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from loraxs_search.errors import UsageError, must_be, one_of
from loraxs_search.methods import METHODS, get_method
from loraxs_search.methods._base import Method
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.paths import user_path
from loraxs_search.plugins import EntryPoints, SearchKey
from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.promotion import NEGATIVE_FLIPS, SLICE_LOSS, PromotionRule
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.samplers import SAMPLERS, make_sampler
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search_space._parameters import PARAMETERS, read_method, read_parameters
from loraxs_search.search_space._peft_methods import PEFT_METHODS, read_peft_methods
from loraxs_search.search_space._sections import keys_of, read_section, read_value
from loraxs_search.search_space.distributions import METHOD
from loraxs_search.search_space.document import (
    Document,
    KeyPath,
    as_mapping,
    find_file,
    parse_document,
    read_file,
    shown,
)
from loraxs_search.search_space.edits import Overrides, apply_overrides, as_texts, plain
from loraxs_search.search_space.parameter_specs import both, check_entry, defaults_of, parameter_specs
from loraxs_search.search_space.space import Space, searched_parameters
from loraxs_search.search_space.task import TaskSection, direction_fault, meant_metrics, read_task, unfit_metric
from loraxs_search.tasks.kinds import find_metric, kind_of

_REQUIRED = ("task", "base_model", "parameters")
_SECTIONS = (*_REQUIRED, "method", PEFT_METHODS, "search", "promotion", "start_from")
SpaceSource = str | Path | Mapping[str, Any] | Space  # what `launch` and `check` take
_HEAD_PARAMETERS = {"head", "head_init", "head_learning_rate"}


def load_space(path_or_name: str, *, overrides: Overrides = ()) -> Space:
    """Read and check a space file.

    Args:
        path_or_name: A YAML file, or the name of a shipped space.
        overrides: One or more `dotted.path=YAML value`, or a mapping of paths to values, put in before checking; later
            ones win.
    Raises:
        SpaceError: there is no such file, or it has faults; the message lists all of them with their lines.
    """
    path, source = find_file(path_or_name)
    return parse_space(read_file(path, source), source=source, folder=path.parent, name=path.stem, overrides=overrides)


def open_space(space: SpaceSource, overrides: Overrides = ()) -> Space:
    """Return a space that is given as a file, by a shipped one's name, as a mapping, or as it is; overrides are put in.

    Raises:
        SpaceError: the space has faults.
        UsageError: it is nothing of these.
    """
    if isinstance(space, str | Path):
        return load_space(str(space), overrides=overrides)
    if isinstance(space, Mapping):
        text = yaml.safe_dump(plain(space), sort_keys=False, allow_unicode=True)
        return parse_space(text, source="the mapping", folder=Path(), name="space", overrides=overrides)
    if not isinstance(space, Space):
        raise UsageError(
            f"`space` must be a file, a shipped space's name, a mapping or a Space, but got {type(space).__name__}.",
            hint='a mapping has the keys of a space file: {"task": ..., "base_model": ..., "parameters": {...}}',
        )
    if not overrides:
        return space
    folder = Path(space.folder)
    return parse_space(space.text, source=space.source, folder=folder, name=space.name, overrides=overrides)


def parse_space(text: str, *, source: str, folder: Path, name: str | None = None, overrides: Overrides = ()) -> Space:
    """Check a space given as text.

    Args:
        source: What faults call the file.
        folder: Where relative paths start.
        name: Name of the space; the stem of `source` by default.
    Raises:
        SpaceError: the text has faults; the message lists all of them with their lines.
    """
    document, overrides = parse_document(text, source), as_texts(overrides)
    apply_overrides(document, overrides)
    return _space(document, text if not overrides else _rewritten(document, overrides), folder, name)


def as_launched(resolved: Space, text: str, name: str) -> Space:
    """Return the space of a stored study, its parameters in the order of the file that was launched.

    Args:
        resolved: With all defaults, as stored.
        text: The file.
    """
    written = (METHOD, *as_mapping(as_mapping(parse_document(text, resolved.source).data).get(PARAMETERS)))
    place = {parameter: number for number, parameter in enumerate(written)}
    # Samplers draw and encode in this order: a stored record has its keys sorted.
    ordered = sorted(resolved.parameters, key=lambda parameter: place.get(parameter, len(place)))
    parameters = {parameter: resolved.parameters[parameter] for parameter in ordered}
    return replace(resolved, text=text, name=name, parameters=parameters)


def _space(document: Document, text: str, folder: Path, name: str | None) -> Space:
    source, folder, sections = document.source, folder.resolve(), _sections(document)
    task = read_task(document, sections["task"], folder) if "task" in sections else None
    base_model = _read_base_model(document, sections["base_model"], folder) if "base_model" in sections else None
    named = read_peft_methods(document)
    is_known = not document.is_faulty(PEFT_METHODS)  # else names would be said to be unknown
    method = read_method(document, sections.get(METHOD, LoraXS.name), named) if is_known else None
    methods = tuple(str(name) for name in method.possible or ()) if method else ()
    parameters = (
        read_parameters(document, sections[PARAMETERS], method, named) if PARAMETERS in sections and method else {}
    )
    searched = {
        name: {field: kind for field, kind in it.searched.items() if field in parameters} for name, it in named.items()
    }
    named = {name: replace(it, searched=searched[name]) for name, it in named.items() if name in methods}
    trained = {name: get_method(name, named.get(name)) for name in methods}
    if task is not None and kind_of(task).model.num_outputs is None:  # trials would not differ in their heads
        for key, method_ in trained.items():
            if method_.needs_head:
                document.fault((METHOD,), f"must be for a task with a head, but got {key} for {task.kind}.")
        for key in _HEAD_PARAMETERS & as_mapping(sections.get(PARAMETERS)).keys():
            document.fault((PARAMETERS, key), f"must be left out: an adapter for {task.kind} has no head.")
    # A section whose every line is commented out is null in YAML: it says nothing, so the defaults stand.
    plan, rule = (sections.get(name) or {} for name in ("search", "promotion"))
    search = _read_search(document, plan)
    if not document.is_faulty("search") and not document.is_faulty(PARAMETERS):
        for fault in make_sampler(search, searched_parameters(parameters)).faults():
            document.fault(("search", "sampler"), fault)
    task = _reported(document, as_mapping(plan), task)
    has_slices = as_mapping(sections.get("task")).get("slices") is not None
    promotion = _read_promotion(document, rule, task, trained, has_slices=has_slices)
    start_from = sections.get("start_from")  # the registry is asked for it at launch
    if start_from is not None and not (isinstance(start_from, str) and start_from):
        law = "must name a registered adapter (TASK, TASK@alias or TASK:3)"
        document.fault(("start_from",), f"{law}, but got {shown(start_from)}.")
    if document.faults or task is None or base_model is None or method is None:
        document.fail()
    space = Space(
        name=name or Path(source).stem,
        text=text,
        source=source,
        folder=str(folder),
        task=task,
        base_model=base_model,
        methods=methods,
        parameters=parameters,
        search=search,
        promotion=promotion,
        start_from=start_from,
        peft_methods=named,
        defaults={name: defaults_of(each) for name, each in trained.items()},
    )
    # Params that differ in nothing but the layers of a method that adapts none are one and the same.
    idle = [name for name in methods if not trained[name].adapts_layers]
    if chosen := [name for name in idle if (own := space.parameters_of(name).get("target_modules")) and own.size != 1]:
        others = [name for name in methods if name not in idle]
        remedy = f"add `when: {{method: [{', '.join(others)}]}}`" if others else "leave it out"
        law = f"must have one value in trials of {both(chosen)}, which adapt no layers: {remedy}."
        document.fault((PARAMETERS, "target_modules"), law)
        document.fail()
    return space


def _sections(document: Document) -> dict[str, Any]:
    data = document.data
    if not isinstance(data, dict):
        got = "nothing" if data is None else shown(data)
        document.fault((), f"must hold keys: {one_of(_SECTIONS)}, but holds {got}.")
        return {}
    for key in data.keys() - set(_SECTIONS):
        # Keys of sections, for who leaves out the section's name.
        taken = {name for method in METHODS.importable().values() for name in parameter_specs(method)}
        inner = {PARAMETERS: taken, "search": {*keys_of(SearchPlan), *entry_keys()}}
        inner |= {"promotion": set(keys_of(PromotionRule)), "task": set(keys_of(TaskSection))}
        meant = " or ".join(f"{section}.{key}" for section, keys in inner.items() if key in keys)
        law = f"did you mean {meant}? It must be one of: {one_of(_SECTIONS)}" if meant else must_be(key, _SECTIONS)
        document.fault((key,), f"{law}, but got {key!r}.")
    for key in _REQUIRED:
        if key not in data:
            document.fault((key,), "is required.")
    return data


def _reported(document: Document, search: Mapping[str, Any], task: Task | None) -> Task | None:
    """Return the task with what its running trials are compared by, where that is not its metric."""
    where: KeyPath = ("search", "metric")
    name = search.get("metric")
    if document.is_faulty(*where):
        return task
    if task is None:
        if name is not None and find_metric(name) is None:
            document.fault(where, f"must be the name of a metric, but got {shown(name)}.")
        return None
    kind = kind_of(task)
    if name is not None and (fault := unfit_metric(kind, kind.keys(), name)):
        document.fault(where, fault)
        return task
    metric = name or kind.report_metric or task.metric
    if metric == task.metric:
        return task
    return replace(task, report_metric=metric, report_direction=kind.metrics[metric].direction)


def single_method(text: str) -> str:
    """Return the method of a space whose trials do not say theirs, as only those of several methods do.

    Whatever else has become of the space, its files or the methods that there are: the text was valid once.
    """
    method = as_mapping(parse_document(text, "space.yaml").data).get(METHOD, LoraXS.name)
    while isinstance(method, dict | list):
        method = next(iter(method.values() if isinstance(method, dict) else method), LoraXS.name)
    return str(method)


def _rewritten(document: Document, overrides: Sequence[str]) -> str:
    """Return the data as new YAML below a line for each override; the original's comments may no longer be true."""
    header = "".join(f"# {document.source} with --set {json.dumps(override)}\n" for override in overrides)
    return header + yaml.safe_dump(document.data, sort_keys=False, allow_unicode=True)


# ---- search ----------------------------------------------------------------------------------------------------------
def entry_keys() -> dict[str, SearchKey]:
    """Return every key that a scheduler or sampler takes; of two that take one, the first one's.

    A space may hold keys of a scheduler that it does not use: `--set search.scheduler=none` is enough to do without.
    """
    taken = [scheduler.parameters for scheduler in SCHEDULERS.importable().values()]
    taken += [sampler.parameters for sampler in SAMPLERS.importable().values()]
    keys: dict[str, SearchKey] = {}
    for name, key in (each for own in taken for each in own.items()):
        keys.setdefault(name, key)
    return keys


def _read_search(document: Document, given: object) -> SearchPlan:
    """Read how to search; the defaults come back if there is a fault."""
    keys, written = entry_keys(), as_mapping(given)
    plan = read_section(document, ("search",), SearchPlan, given, keys)
    values = {
        name: read_value(document, ("search", name), key.annotation, written[name]) if name in written else key.default
        for name, key in keys.items()
    }
    registries: dict[str, EntryPoints[Any]] = {"scheduler": SCHEDULERS, "sampler": SAMPLERS}
    for name, registry in registries.items():
        if isinstance(entry := written.get(name), str):
            try:
                check_entry(registry, f"a {name}", entry)
            except ValueError as error:
                document.fault(("search", name), f"{error}, but got {shown(entry)}.")
    pace = {key: written.get(key, getattr(SearchPlan, key)) for key in ("report_every", "max_steps")}
    is_sound = not any(document.is_faulty("search", key) for key in pace)
    if is_sound and pace["report_every"] > pace["max_steps"]:
        got = " and ".join(f"{key}={value}" for key, value in pace.items())
        document.fault(("search", "report_every"), f"must be at most max_steps, but got {got}.")
    if plan is None or document.is_faulty("search"):
        return SearchPlan()
    taken = SCHEDULERS.get(plan.scheduler).parameters.keys() | SAMPLERS.get(plan.sampler).parameters.keys()
    return replace(plan, params={name: value for name, value in values.items() if name in taken})


# ---- base model and promotion ----------------------------------------------------------------------------------------
def _read_base_model(document: Document, given: object, folder: Path) -> BaseModelRef | None:
    """Read the base; a path is taken relative to `folder`. None if there is a fault."""
    path, written = ("base_model",), {"id": given} if isinstance(given, str) else given
    ref = read_section(document, path, BaseModelRef, written)
    if ref is None or not ref.id.startswith((".", "~", "/")):
        return ref
    law = f"must be a hub id, or a folder relative to this file, but got {shown(ref.id)}"
    try:
        found = user_path(ref.id, folder)
    except ValueError as error:
        document.fault((*path, "id"), f"{law}: {error}.")
        return None
    if not found.is_dir():
        document.fault((*path, "id"), f"{law}, and {found} is no folder.")
    return replace(ref, id=str(found))


def _read_promotion(
    document: Document, given: object, task: Task | None, methods: Mapping[str, Method], *, has_slices: bool
) -> PromotionRule:
    """Read the rule, and hold it against the task and the methods; the default comes back if there is a fault."""
    rule, keys = read_section(document, ("promotion",), PromotionRule, given), as_mapping(given)
    faulty = {key for key in keys if document.is_faulty("promotion", key)}
    found = [*_metric_faults(document, keys, task), *_choice_faults(keys)]
    guards = as_mapping(keys.get("guards"))
    if SLICE_LOSS in guards and not has_slices:
        found.append(("guards", f"must stand beside `task.slices` where it names {SLICE_LOSS}."))
    if NEGATIVE_FLIPS in guards and task is not None and not kind_of(task).has_right_answers:
        law = f"must not name {NEGATIVE_FLIPS}: the task's answers are numbers, neither right nor wrong."
        found.append(("guards", law))
    for name in rule.methods if rule is not None and methods else ():
        if name not in methods:
            law = must_be(name, methods, "must be among the space's methods")
            found.append(("methods", f"{law}, but got {shown(name)}."))
        elif not methods[name].has_adapter:
            found.append(("methods", f"must have adapters, but of {name} only metrics are recorded."))
    for key, message in found:
        if key not in faulty or key in ("guards", "metric"):
            document.fault(("promotion", key), message)
    return rule or PromotionRule()


def _metric_faults(document: Document, keys: Mapping[str, Any], task: Task | None) -> Iterator[tuple[str, str]]:
    metrics = task.metrics if task else meant_metrics(as_mapping(document.data).get("task"))
    guarded = [name for name in as_mapping(keys.get("guards")) if name not in (NEGATIVE_FLIPS, SLICE_LOSS)]
    for key, metric in [("metric", keys.get("metric")), *(("guards", name) for name in guarded)]:
        if isinstance(metric, str) and metrics and metric not in metrics:
            law = must_be(metric, metrics, "must be one of the task's metrics")
            yield key, f"{law}, but got {shown(metric)}."
    decides = keys.get("metric") or (task.metric if task else None)
    direction = keys.get("direction")
    if decides in metrics and isinstance(direction, str) and (fault := direction_fault(direction, decides)):
        yield "direction", fault


def _choice_faults(keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if keys.get("choose") != "smallest":
        return
    if not keys.get("tolerance", PromotionRule.tolerance):
        law = "smallest must stand beside a tolerance, which says what fewer bytes may cost"
        yield "choose", f"{law}, but there is none; write tolerance: 0.005, or choose: best."
    if keys.get("candidates", PromotionRule.candidates) == 1:
        yield (
            "candidates",
            "must be at least 2 beside choose: smallest, since tolerance counts from the best, but got 1.",
        )
