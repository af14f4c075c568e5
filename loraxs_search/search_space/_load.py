"""A file, its name or its text -> `Space`, or one error with every fault in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from loraxs_search.errors import UsageError, must_be, one_of
from loraxs_search.methods import METHODS, LoraXS, Method, get_method
from loraxs_search.paths import user_path
from loraxs_search.records import NEGATIVE_FLIPS, SLICE_LOSS, BaseModelRef, PromotionRule, SearchPlan, Task
from loraxs_search.samplers import SAMPLERS, make_sampler
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search_space._distributions import METHOD, Parameter
from loraxs_search.search_space._document import (
    Document,
    KeyPath,
    as_mapping,
    find_file,
    parse_document,
    read_file,
    shown,
)
from loraxs_search.search_space._edits import (
    Overrides,
    apply_overrides,
    as_texts,
    plain,
)
from loraxs_search.search_space._parameter_forms import PARAMETERS
from loraxs_search.search_space._parameter_specs import both, defaults_of, parameter_specs
from loraxs_search.search_space._parameters import read_method, read_parameters
from loraxs_search.search_space._peft_methods import PEFT_METHODS, read_peft_methods
from loraxs_search.search_space._sections import (
    BaseModelSection,
    PromotionSection,
    SearchSection,
    check_choice,
    read_section,
    search_section,
)
from loraxs_search.search_space._space import Space, searched_parameters
from loraxs_search.search_space._task import TaskSection, direction_fault, meant_metrics, read_task, unfit_metric
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
    source, folder = document.source, folder.resolve()
    sections = _sections(document)
    task = read_task(document, sections["task"], folder) if "task" in sections else None
    base_model = _base_model(document, sections["base_model"], folder) if "base_model" in sections else None
    named = read_peft_methods(document)
    is_known = not document.faults.at_or_below((PEFT_METHODS,))  # else names would be said to be unknown
    method = read_method(document, sections.get("method", LoraXS.name), named) if is_known else None
    methods = tuple(str(name) for name in method.possible or ()) if method else ()
    parameters = (
        read_parameters(document, sections["parameters"], method, named) if "parameters" in sections and method else {}
    )
    searched = {
        name: {field: kind for field, kind in it.searched.items() if field in parameters} for name, it in named.items()
    }
    named = {name: replace(it, searched=searched[name]) for name, it in named.items() if name in methods}
    trained = {name: get_method(name, named.get(name)) for name in methods}
    _check_head(document, sections.get("parameters"), task, trained)
    # A section whose every line is commented out is null in YAML: it says nothing, so the defaults stand.
    plan, rule = (sections.get(name) or {} for name in ("search", "promotion"))
    search = _search(document, plan)
    _check_sampler(document, search, parameters)
    task = _reported(document, as_mapping(plan), task)
    has_slices = as_mapping(sections.get("task")).get("slices") is not None
    promotion = _promotion(document, rule, task, trained, has_slices=has_slices)
    check_choice(document, as_mapping(rule))
    start_from = _start_from(document, sections.get("start_from"))
    if document.faults or task is None or base_model is None or method is None:
        document.faults.fail(source, document.locations)
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
    _check_target_modules(document, space)
    return space


def _check_target_modules(document: Document, space: Space) -> None:
    """Refuse a search over layers in trials that adapt none: params that differ in nothing else are one and the same.

    Raises:
        SpaceError: with what to do.
    """
    idle = [name for name in space.methods if not space.method(name).adapts_layers]
    searched = [name for name in idle if (own := space.parameters_of(name).get("target_modules")) and own.size != 1]
    if searched:
        others = [name for name in space.methods if name not in idle]
        remedy = f"add `when: {{method: [{', '.join(others)}]}}`" if others else "leave it out"
        document.faults.add(
            (PARAMETERS, "target_modules"),
            f"must have one value in trials of {both(searched)}, which adapt no layers: {remedy}.",
        )
        document.faults.fail(document.source, document.locations)


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


def _sections(document: Document) -> dict[str, Any]:
    data = document.data
    if not isinstance(data, dict):
        got = "nothing" if data is None else shown(data)
        document.faults.add((), f"must hold keys: {one_of(_SECTIONS)}, but holds {got}.")
        return {}
    for key in data:
        if key not in _SECTIONS:
            inner = " or ".join(f"{section}.{key}" for section, keys in _section_keys().items() if key in keys)
            law = f"did you mean {inner}? It must be one of: {one_of(_SECTIONS)}" if inner else must_be(key, _SECTIONS)
            document.faults.add((key,), f"{law}, but got {key!r}.")
    for key in _REQUIRED:
        if key not in data:
            document.faults.add((key,), "is required.")
    return data


def _section_keys() -> dict[str, set[str]]:
    """Return the keys of sections, for who leaves out the section's name."""
    models: dict[str, Any] = {"search": search_section(), "promotion": PromotionSection, "task": TaskSection}
    parameters = {name for method in METHODS.importable().values() for name in parameter_specs(method)}
    return {"parameters": parameters} | {name: set(model.model_fields) for name, model in models.items()}


def _start_from(document: Document, given: object) -> str | None:
    """Return the name of the adapter that trials start from; the registry is asked for it at launch."""
    if given is None or (isinstance(given, str) and given):
        return given or None
    law = "must name a registered adapter (TASK, TASK@alias or TASK:3)"
    document.faults.add(("start_from",), f"{law}, but got {shown(given)}.")
    return None


def _base_model(document: Document, given: object, folder: Path) -> BaseModelRef | None:
    section = read_section(
        document, ("base_model",), BaseModelSection, {"id": given} if isinstance(given, str) else given
    )
    if section is None:
        return None
    fields = section.model_dump()
    if section.id.startswith((".", "~", "/")):
        where: KeyPath = ("base_model", "id")
        law = f"must be a hub id, or a folder relative to this file, but got {shown(section.id)}"
        try:
            path = user_path(section.id, folder)
        except ValueError as error:
            document.faults.add(where, f"{law}: {error}.")
            return None
        fields["id"] = str(path)
        if not path.is_dir():
            document.faults.add(where, f"{law}, and {path} is no folder.")
    return BaseModelRef(**fields)


def _search(document: Document, given: object) -> SearchPlan:
    section = read_section(document, ("search",), search_section(), given)
    pace = {key: as_mapping(given).get(key, getattr(SearchPlan, key)) for key in ("report_every", "max_steps")}
    is_sound = not any(document.faults.at_or_below(("search", key)) for key in pace)
    if is_sound and pace["report_every"] > pace["max_steps"]:
        got = " and ".join(f"{key}={value}" for key, value in pace.items())
        document.faults.add(("search", "report_every"), f"must be at most max_steps, but got {got}.")
    if section is None:
        return SearchPlan()
    values = section.model_dump(exclude={"metric"})
    params = {key: values.pop(key) for key in values.keys() - SearchSection.model_fields.keys()}
    factor = params.pop("reduction_factor")  # stored as a field, whichever scheduler is chosen
    values["scheduler_params"], values["sampler_params"] = (
        {key: value for key, value in params.items() if key in entry.parameters}
        for entry in (SCHEDULERS.get(values["scheduler"]), SAMPLERS.get(section.sampler))
    )
    values["time_budget_s"] = values.pop("time_budget")
    return SearchPlan(**values, reduction_factor=factor)


def _check_sampler(document: Document, plan: SearchPlan, parameters: Mapping[str, Parameter]) -> None:
    """Report what the sampler cannot search."""
    if not document.faults.at_or_below(("search",)) and not document.faults.at_or_below((PARAMETERS,)):
        for fault in make_sampler(plan, searched_parameters(parameters)).faults():
            document.faults.add(("search", "sampler"), fault)


def _reported(document: Document, search: Mapping[str, Any], task: Task | None) -> Task | None:
    """Return the task with what its running trials are compared by, where that is not its metric."""
    where: KeyPath = ("search", "metric")
    name = search.get("metric")
    if document.faults.at_or_below(where):
        return task
    if task is None:
        if name is not None and find_metric(name) is None:
            document.faults.add(where, f"must be the name of a metric, but got {shown(name)}.")
        return None
    kind = kind_of(task)
    if name is not None and (fault := unfit_metric(kind, kind.keys(), name)):
        document.faults.add(where, fault)
        return task
    metric = name or kind.report_metric or task.metric
    if metric == task.metric:
        return task
    return replace(task, report_metric=metric, report_direction=kind.metrics[metric].direction)


def _check_head(document: Document, given: object, task: Task | None, methods: Mapping[str, Method]) -> None:
    """Refuse head parameters and methods that need a head if the task has no head: such trials would not differ."""
    if task is None or kind_of(task).model.num_outputs is not None:
        return
    for name, method in methods.items():
        if method.needs_head:
            document.faults.add(("method",), f"must be for a task with a head, but got {name} for {task.kind}.")
    for key in _HEAD_PARAMETERS & as_mapping(given).keys():
        document.faults.add(("parameters", key), f"must be left out: an adapter for {task.kind} has no head.")


def _promotion(
    document: Document, given: object, task: Task | None, methods: Mapping[str, Method], *, has_slices: bool
) -> PromotionRule:
    metrics = task.metrics if task else meant_metrics(as_mapping(document.data).get("task"))
    section = read_section(document, ("promotion",), PromotionSection, given)
    keys = as_mapping(given)
    guards = as_mapping(keys.get("guards"))
    if SLICE_LOSS in guards and not has_slices:
        document.faults.add(("promotion", "guards"), f"must stand beside `task.slices` where it names {SLICE_LOSS}.")
    if NEGATIVE_FLIPS in guards and task is not None and not kind_of(task).has_right_answers:
        law = f"must not name {NEGATIVE_FLIPS}: the task's answers are numbers, neither right nor wrong."
        document.faults.add(("promotion", "guards"), law)
    named = [
        ("metric", keys.get("metric")),
        *(("guards", name) for name in guards if name not in (NEGATIVE_FLIPS, SLICE_LOSS)),
    ]
    for key, metric in named:
        if isinstance(metric, str) and metrics and metric not in metrics:
            law = must_be(metric, metrics, "must be one of the task's metrics")
            document.faults.add(("promotion", key), f"{law}, but got {shown(metric)}.")
    decides = keys.get("metric") or (task.metric if task else None)
    given_direction = None if document.faults.at_or_below(("promotion", "direction")) else keys.get("direction")
    if decides in metrics and (fault := direction_fault(given_direction, decides)):
        document.faults.add(("promotion", "direction"), fault)
    for name in section.methods if section is not None and methods else ():
        if fault := _not_promotable(name, methods):
            document.faults.add(("promotion", "methods"), fault)
    return PromotionRule() if section is None else PromotionRule(**section.model_dump())


def _not_promotable(name: str, methods: Mapping[str, Method]) -> str | None:
    """Return why trials of a method cannot be candidates of a space with these methods; None if they can."""
    if name not in methods:
        law = must_be(name, methods, "must be among the space's methods")
        return f"{law}, but got {shown(name)}."
    if not methods[name].has_adapter:
        return f"must have adapters, but of {name} only metrics are recorded."
    return None
