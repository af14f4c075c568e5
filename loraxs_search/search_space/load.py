"""A file, its name or its text -> `Space`, or one error with every fault in it.

Overrides change a document before it is read: `--set search.trials=24` is a dotted path and a YAML value.
`--set method=lora` also leaves out what a space of several methods says of the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from loraxs_search.errors import UsageError, both, must_be, one_of
from loraxs_search.methods import METHODS, get_method
from loraxs_search.methods._base import Method
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.paths import user_path
from loraxs_search.plugins import EntryPoints, ParameterSpec
from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.promotion import NEGATIVE_FLIPS, SLICE_LOSS, PromotionRule
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.task import Task
from loraxs_search.records.trial import PeftSettings
from loraxs_search.samplers import SAMPLERS, make_sampler
from loraxs_search.schedulers import SCHEDULERS
from loraxs_search.search_space.distributions import (
    METHOD,
    PARAMETERS,
    Alternative,
    Distribution,
    Parameter,
    parameters_of,
)
from loraxs_search.search_space.document import (
    BEHIND_FILES,
    Document,
    as_mapping,
    keys_of,
    parse_document,
    read_file,
    read_section,
    shown,
)
from loraxs_search.search_space.parameters import (
    PEFT_METHODS,
    check_entry,
    parameter_specs,
    read_method,
    read_parameters,
    read_peft_methods,
)
from loraxs_search.search_space.space import Space, searched_parameters
from loraxs_search.search_space.task import TaskSection, direction_fault, meant_metrics, read_task, unfit_metric
from loraxs_search.tasks.kinds import find_metric, kind_of

_REQUIRED = ("task", "base_model", PARAMETERS)
_SECTIONS = (*_REQUIRED, METHOD, PEFT_METHODS, "search", "promotion", "start_from")
_OF_METRICS, _OF_METHODS = "must be one of the task's metrics", "must be among the space's methods"
_HEAD_PARAMETERS = {"head", "head_init", "head_learning_rate"}
Overrides = Sequence[str] | Mapping[str, Any]
SpaceSource = str | Path | Mapping[str, Any] | Space  # what `launch` and `check` take


def load_space(path_or_name: str, *, overrides: Overrides = ()) -> Space:
    """Read and check a space file.

    Args:
        path_or_name: A YAML file, or the name of a shipped space.
        overrides: One or more `dotted.path=YAML value`, or a mapping of paths to values, put in before checking; later
            ones win.
    Raises:
        SpaceError: there is no such file, or it has faults; the message lists all of them with their lines.
    """
    path, source, text = read_file(path_or_name)
    return parse_space(text, source=source, folder=path.parent, name=path.stem, overrides=overrides)


def open_space(space: SpaceSource, overrides: Overrides = ()) -> Space:
    """Return a space that is given as a file, by a shipped one's name, as a mapping, or as it is; overrides are put in.

    Raises:
        SpaceError: the space has faults.
        UsageError: it is nothing of these.
    """
    if isinstance(space, str | Path):
        return load_space(str(space), overrides=overrides)
    if isinstance(space, Mapping):
        text = yaml.safe_dump(_plain(space), sort_keys=False, allow_unicode=True)
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
    document, changes = parse_document(text, source), as_texts(overrides)
    earlier = _names(as_mapping(document.data).get(METHOD))
    for index, override in enumerate(changes):
        document.put(override, index)
    sections, named = _sections(document), read_peft_methods(document)
    is_readable = _narrow(document, earlier, named)
    if changes:  # new YAML below a line for each override: the original's comments may no longer be true
        header = "".join(f"# {source} with --set {json.dumps(override)}\n" for override in changes)
        text = header + yaml.safe_dump(document.data, sort_keys=False, allow_unicode=True)
    folder = folder.resolve()
    task = read_task(document, sections["task"], folder) if "task" in sections else None
    base_model = _read_base_model(document, sections["base_model"], folder) if "base_model" in sections else None
    is_known = not document.is_faulty(PEFT_METHODS)  # else names would be said to be unknown
    method = read_method(document, sections.get(METHOD, LoraXS.name), named) if is_known else None
    methods = tuple(str(name) for name in method.possible or ()) if method else ()
    parameters: Mapping[str, Parameter] = {}
    if PARAMETERS in sections and method and is_readable:
        parameters = read_parameters(document, sections[PARAMETERS], method, named)
        if len(methods) == 1:  # nothing hangs on the method
            parameters = {} if document.faults else parameters_of(parameters, methods)
    named = {
        key: replace(it, searched={name: kind for name, kind in it.searched.items() if name in parameters})
        for key, it in named.items()
        if key in methods
    }
    trained = {key: get_method(key, named.get(key)) for key in methods}
    if task is not None and kind_of(task).model.num_outputs is None:  # trials would not differ in their heads
        for key, method_ in trained.items():
            if method_.needs_head:
                document.fault((METHOD,), f"must be for a task with a head, but got {key} for {task.kind}.")
        for key in _HEAD_PARAMETERS & as_mapping(sections.get(PARAMETERS)).keys():
            document.fault((PARAMETERS, key), f"must be left out: an adapter for {task.kind} has no head.")
    search, task = _read_search(document, sections, task, parameters)
    promotion = _read_promotion(document, sections, task, trained)
    start_from = sections.get("start_from")  # the registry is asked for it at launch
    if start_from is not None and not (isinstance(start_from, str) and start_from):
        law = "must name a registered adapter (TASK, TASK@alias or TASK:3)"
        document.fault(("start_from",), f"{law}, but got {shown(start_from)}.")
    # Params that differ in nothing but the layers of a method that adapts none are one and the same.
    idle = [name for name in methods if not trained[name].adapts_layers]
    if idle and not document.is_faulty(PARAMETERS):
        searched = [(name, parameters_of(parameters, [name]).get("target_modules")) for name in idle]
        if chosen := [name for name, modules in searched if modules is not None and modules.size != 1]:
            others = [name for name in methods if name not in idle]
            remedy = f"add `when: {{method: [{', '.join(others)}]}}`" if others else "leave it out"
            law = f"must have one value in trials of {both(chosen)}, which adapt no layers: {remedy}."
            document.fault((PARAMETERS, "target_modules"), law)
    if document.faults or task is None or base_model is None or method is None:
        document.fail()
    return Space(
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
        defaults={
            key: {name: spec.default for name, spec in parameter_specs(own).items() if spec.default is not None}
            for key, own in trained.items()
        },
    )


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


def entry_keys() -> dict[str, ParameterSpec]:
    """Return every key that a scheduler or sampler takes; of two that take one, the first one's.

    A space may hold keys of a scheduler that it does not use: `--set search.scheduler=none` is enough to do without.
    """
    taken = [scheduler.parameters for scheduler in SCHEDULERS.importable().values()]
    taken += [sampler.parameters for sampler in SAMPLERS.importable().values()]
    return {name: next(own[name] for own in taken if name in own) for own in taken for name in own}


def _read_search(
    document: Document, sections: Mapping[str, Any], task: Task | None, parameters: Mapping[str, Parameter]
) -> tuple[SearchPlan, Task | None]:
    """Read how to search (the defaults after a fault), and what the running trials of the task are compared by."""
    # A section whose every line is commented out is null in YAML: it says nothing, so the defaults stand.
    keys, given = entry_keys(), sections.get("search") or {}
    plan, written, params = read_section(document, ("search",), SearchPlan, given, keys), as_mapping(given), {}
    for name, key in keys.items():
        try:
            params[name] = key.check(written.get(name, key.default))
        except ValueError as error:
            document.fault(("search", name), f"{error}, but got {document.got(('search', name), written[name])}.")
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
        plan = SearchPlan()
    else:
        taken = SCHEDULERS.get(plan.scheduler).parameters.keys() | SAMPLERS.get(plan.sampler).parameters.keys()
        plan = replace(plan, params={name: value for name, value in params.items() if name in taken})
        if not document.is_faulty(PARAMETERS):
            for fault in make_sampler(plan, searched_parameters(parameters)).faults():
                document.fault(("search", "sampler"), fault)
    where, metric = ("search", "metric"), written.get("metric")
    if document.is_faulty(*where):
        return plan, task
    if task is None:
        if metric is not None and find_metric(metric) is None:
            document.fault(where, f"must be the name of a metric, but got {shown(metric)}.")
        return plan, None
    kind = kind_of(task)
    if metric is not None and (unfit := unfit_metric(kind, kind.keys(), metric)):
        document.fault(where, unfit)
    elif (reported := metric or kind.report_metric or task.metric) != task.metric:
        task = replace(task, report_metric=reported, report_direction=kind.metrics[reported].direction)
    return plan, task


def _read_promotion(
    document: Document, sections: Mapping[str, Any], task: Task | None, methods: Mapping[str, Method]
) -> PromotionRule:
    """Read the rule, and hold it against the task and the methods; the default comes back if there is a fault."""
    given = sections.get("promotion") or {}
    rule, keys = read_section(document, ("promotion",), PromotionRule, given), as_mapping(given)
    sound = {key: value for key, value in keys.items() if not document.is_faulty("promotion", key)}
    guards, metric = as_mapping(keys.get("guards")), keys.get("metric")

    def fault(key: str, law: str) -> None:
        document.fault(("promotion", key), law)

    metrics = task.metrics if task else meant_metrics(as_mapping(document.data).get("task"))
    named = [("metric", metric), *(("guards", name) for name in guards if name not in (NEGATIVE_FLIPS, SLICE_LOSS))]
    for key, name in named:
        if isinstance(name, str) and metrics and name not in metrics:
            fault(key, f"{must_be(name, metrics, _OF_METRICS)}, but got {shown(name)}.")
    decides, direction = metric or (task.metric if task else None), sound.get("direction")
    if decides in metrics and isinstance(direction, str) and (law := direction_fault(direction, decides)):
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
    for name in rule.methods if rule is not None and methods else ():
        if name not in methods:
            fault("methods", f"{must_be(name, methods, _OF_METHODS)}, but got {shown(name)}.")
        elif not methods[name].has_adapter:
            fault("methods", f"must have adapters, but of {name} only metrics are recorded.")
    return rule or PromotionRule()


# ---- overrides -------------------------------------------------------------------------------------------------------
def as_texts(overrides: Overrides) -> Sequence[str]:
    """Return overrides as the command line has them: values of a mapping as YAML."""
    if isinstance(overrides, str):
        return [overrides]
    if not isinstance(overrides, Mapping):
        return overrides
    texts = []
    for path, value in overrides.items():
        text = yaml.safe_dump(_plain(value), default_flow_style=True, allow_unicode=True, width=float("inf"))
        texts.append(f"{path}={text.removesuffix('...' + chr(10)).strip()}")
    return texts


def _plain(value: object) -> object:
    """Return what YAML can write of a mapping's value."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return _plain(value.tolist())
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _narrow(document: Document, earlier: Sequence[str], named: Mapping[str, PeftSettings]) -> bool:
    """Leave out what the file says of methods that overrides have taken from it, and nothing else.

    A space that was given other methods than it had, or ones that are not installed, is left as it is: what does not
    fit is a fault.

    Args:
        earlier: The methods that the file has.
    Returns:
        Whether the file's parameters could be read; else the document has their faults.
    """
    data = as_mapping(document.data)
    wanted, promotion, section = _names(data.get(METHOD)), as_mapping(data.get("promotion")), data.get(PARAMETERS)
    if not wanted or not set(wanted) < set(earlier) or not set(wanted) <= {*METHODS.importable(), *named}:
        return True
    if isinstance(promotion.get("methods"), list):
        left = [name for name in promotion["methods"] if name in wanted or name not in earlier]
        promotion["methods"] = left or promotion["methods"]  # none of them left is a fault: all would be candidates
    if not isinstance(section, dict) or document.place((PARAMETERS,))[0] == BEHIND_FILES:
        return True
    every = Parameter(METHOD, (Alternative(Distribution("choice", tuple(earlier))),))
    whole = read_parameters(document, section, every, named, wanted)
    if document.is_faulty(PARAMETERS):
        return False
    kept = parameters_of(whole, wanted)
    for name in list(section):
        if name in kept:
            section[name] = kept[name].written()
        elif document.place((PARAMETERS, name))[0] != BEHIND_FILES:  # one of an override is a fault
            del section[name]
    return True


def _names(given: object) -> list[str]:
    """Return the methods that are named at `method`; none if it is written in another way."""
    named = given.get("choice") if isinstance(given, dict) else given
    names = named if isinstance(named, list) else [named]
    return [name for name in names if isinstance(name, str)] if all(isinstance(n, str) for n in names) else []
