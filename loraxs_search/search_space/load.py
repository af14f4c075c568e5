"""A file, its name or its text -> `Space`, or one error with every fault in it.

Overrides change a document before it is read: `--set search.trials=24` is a dotted path and a YAML value.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from graphlib import CycleError
from pathlib import Path
from typing import Any

import yaml

from loraxs_search.errors import UsageError, asking, both, did_you_mean, meant, must_be, one_of
from loraxs_search.home import meant_file, shipped_space_path, shipped_spaces, user_path
from loraxs_search.methods import METHODS, get_method
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.plugins import ParameterSpec
from loraxs_search.records.codec import Scalar
from loraxs_search.records.search import PromotionRule, SearchPlan
from loraxs_search.records.task import BaseModelRef
from loraxs_search.records.trial import PeftSettings
from loraxs_search.search_space.document import (
    Document,
    KeyPath,
    as_mapping,
    keys_of,
    parse_document,
    read_section,
    shown,
)
from loraxs_search.search_space.parameters import (
    METHOD,
    PARAMETERS,
    Alternative,
    Condition,
    Distribution,
    Parameter,
    drawing_order,
    method_spec,
    parameter_specs,
    parameters_of,
)
from loraxs_search.search_space.sections import TaskSection, entry_keys, read_promotion, read_search, read_task
from loraxs_search.search_space.space import Space
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tasks.rows import DATA_ENDINGS

_PEFT_METHODS = "peft_methods"
_REQUIRED = ("task", "base_model", PARAMETERS)
_SECTIONS = (*_REQUIRED, METHOD, _PEFT_METHODS, "search", "promotion", "start_from")
_HEAD_PARAMETERS = {"head", "head_init", "head_learning_rate"}
_OPTIONS = {"value": (), "choice": (), "uniform": ("step",), "log_uniform": (), "int": ("step", "log")}  # by form
_MAX_STEPS = 10**9  # decimals of 28 digits divide exactly far beyond it
_MAX_BYTES = 1_000_000
Overrides = Sequence[str] | Mapping[str, Any]
SpaceSource = str | Path | Mapping[str, Any] | Space  # what `launch` and `check` take


def load_space(space: SpaceSource, overrides: Overrides = ()) -> Space:
    """Read and check a space.

    Args:
        space: A YAML file, the name of a shipped space, a mapping with a file's keys, or a space, to be changed.
        overrides: One or more `dotted.path=YAML value`, or a mapping of paths to values, put in before checking; later
            ones win.
    Raises:
        UsageError: there is no such space, or it cannot be read, or it has faults; the message lists all of them with
            their lines.
    """
    if isinstance(space, Space):
        text, source, folder, name = space.text, space.source, Path(space.folder), space.name
        return parse_space(text, source=source, folder=folder, name=name, overrides=overrides) if overrides else space
    if isinstance(space, Mapping):
        text = yaml.safe_dump(_plain(space), sort_keys=False, allow_unicode=True)
        return parse_space(text, source="the mapping", folder=Path(), name="space", overrides=overrides)
    if not isinstance(space, str | Path):
        raise UsageError(
            f"`space` must be a file, a shipped space's name, a mapping or a Space, but got {type(space).__name__}.",
            hint='a mapping has the keys of a space file: {"task": ..., "base_model": ..., "parameters": {...}}',
        )
    path_or_name = str(space)
    given, hint = Path(path_or_name), f"shipped spaces: {one_of(shipped_spaces(), Path(path_or_name).stem)}"
    try:
        path = user_path(path_or_name)
        is_file, is_folder = path.is_file(), path.is_dir()
    except ValueError as error:
        law = f"`space` must be a YAML file or the name of a shipped space, but got {shown(path_or_name)}: {error}."
        raise UsageError(law, hint=hint) from None
    rows, endings = {*DATA_ENDINGS} - {".json"}, [ending.lower() for ending in path.suffixes]  # JSON is YAML
    if is_file and rows & {*endings} and endings[-1] not in (".yaml", ".yml"):
        hint = f"`loraxs-search init {path_or_name}` writes a space for them"
        raise UsageError(f"`space` must be a YAML file, but {path_or_name} holds rows.", hint=hint)
    file, source = given.expanduser(), path_or_name
    if not is_file and file.name == path_or_name:  # no folder in it: may be a shipped space's name
        with contextlib.suppress(UsageError):
            file, is_file = shipped_space_path(path_or_name), True
            source = str(file)
    if not is_file and is_folder:
        raise UsageError(f"`space` must be a YAML file, but {path_or_name} is a folder.", hint=hint)
    if not is_file:
        first = meant_file(given if given.suffix else Path(f"{path_or_name}.yaml"))
        first = first or did_you_mean(given.stem, shipped_spaces())
        law = "`space` must be a YAML file or the name of a shipped space, but there is no"
        raise UsageError(f"{first}{law} {path_or_name}.", hint=hint)
    try:
        content = file.read_bytes()
    except OSError as error:
        law = f"{source} must be readable, but the system says: {error.strerror}."
        raise UsageError(law, hint=hint) from error
    if len(content) > _MAX_BYTES:
        law = f"{source} must be at most {_MAX_BYTES} bytes, but has {len(content)}: is it a space file?"
        raise UsageError(law, hint=hint)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        law = f"{source}:{line}: must be text in UTF-8, but byte {error.start} is not."
        raise UsageError(law, hint="save the file as UTF-8") from error
    return parse_space(text, source=source, folder=file.parent, name=file.stem, overrides=overrides)


def parse_space(text: str, *, source: str, folder: Path, name: str | None = None, overrides: Overrides = ()) -> Space:
    """Check a space given as text.

    Args:
        source: What faults call the file.
        folder: Where relative paths start.
        name: Name of the space; the stem of `source` by default.
    Raises:
        UsageError: the text has faults; the message lists all of them with their lines.
    """
    document, changes, folder = parse_document(text, source), _as_texts(overrides), folder.resolve()
    for index, override in enumerate(changes):
        document.put(override, index)
    _check_keys(document)
    sections, named = as_mapping(document.data), _read_peft_methods(document)
    if changes:  # new YAML below a line for each override: the original's comments may no longer be true
        header = "".join(f"# {source} with --set {json.dumps(override)}\n" for override in changes)
        text = header + yaml.safe_dump(document.data, sort_keys=False, allow_unicode=True)
    task = read_task(document, sections["task"], folder) if "task" in sections else None
    base_model = _read_base_model(document, sections["base_model"], folder) if "base_model" in sections else None

    method: Parameter | None = None
    if not document.is_faulty(_PEFT_METHODS):  # else names would be said to be unknown
        written = sections.get(METHOD, LoraXS.name)
        drawn = _read_form(document, (METHOD,), method_spec(named), written, extra=())
        method = None if drawn is None else Parameter(METHOD, (Alternative(drawn),))
    methods = tuple(str(each) for each in method.possible or ()) if method else ()
    parameters: Mapping[str, Parameter] = {}
    if PARAMETERS in sections and method:
        parameters = _read_parameters(document, sections[PARAMETERS], method, named)
        if len(methods) == 1:  # nothing hangs on the method
            parameters = {} if document.faults else parameters_of(parameters, methods[0])
    named = {
        key: replace(it, searched={name: kind for name, kind in it.searched.items() if name in parameters})
        for key, it in named.items()
        if key in methods
    }
    trained = {key: get_method(key, named.get(key)) for key in methods}
    if task is not None and kind_of(task).model.num_outputs is None:  # trials would not differ in their heads
        for key, own in trained.items():
            if own.needs_head:
                document.fault((METHOD,), f"must be for a task with a head, but got {key} for {task.kind}.")
        for key in _HEAD_PARAMETERS & as_mapping(sections.get(PARAMETERS)).keys():
            document.fault((PARAMETERS, key), f"must be left out: an adapter for {task.kind} has no head.")
    # Params that differ in nothing but the layers of a method that adapts none are one and the same.
    idle = [key for key in methods if not trained[key].adapts_layers]
    if idle and not document.is_faulty(PARAMETERS):
        searched = {key: parameters_of(parameters, key).get("target_modules") for key in idle}
        if chosen := [key for key, modules in searched.items() if modules is not None and modules.size != 1]:
            others = [key for key in methods if key not in idle]
            remedy = f"add `when: {{method: [{', '.join(others)}]}}`" if others else "leave it out"
            law = f"must have one value in trials of {both(chosen)}, which adapt no layers: {remedy}."
            document.fault((PARAMETERS, "target_modules"), law)

    search, task = read_search(document, task, parameters)
    promotion = read_promotion(document, task, trained)
    start_from = sections.get("start_from")  # the registry is asked for it at launch
    if start_from is not None and not (isinstance(start_from, str) and start_from):
        document.refuse(("start_from",), "must name a registered adapter (TASK, TASK@alias or TASK:3)", start_from)
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


def _check_keys(document: Document) -> None:
    """Report keys at the top that no section has, and required sections that are missing."""
    if not isinstance(data := document.data, dict):
        got = "nothing" if data is None else shown(data)
        document.fault((), f"must hold keys: {one_of(_SECTIONS)}, but holds {got}.")
        return
    for key in data.keys() - set(_SECTIONS):
        # Keys of sections, for who leaves out the section's name.
        taken = {name for method in METHODS.importable().values() for name in parameter_specs(method)}
        inner = {PARAMETERS: taken, "search": {*keys_of(SearchPlan), *entry_keys()}}
        inner |= {"promotion": set(keys_of(PromotionRule)), "task": set(keys_of(TaskSection))}
        place = " or ".join(f"{section}.{key}" for section, keys in inner.items() if key in keys)
        law = f"did you mean {place}? It must be one of: {one_of(_SECTIONS)}" if place else must_be(key, _SECTIONS)
        document.fault((key,), f"{law}, but got {key!r}.")
    for key in _REQUIRED:
        if key not in data:
            document.fault((key,), "is required.")


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


# ---- overrides -------------------------------------------------------------------------------------------------------
def _as_texts(overrides: Overrides) -> Sequence[str]:
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


# ---- one form --------------------------------------------------------------------------------------------------------
class _Refused(Exception):  # noqa: N818  # it ends the reading of one form, and is no error
    """A form cannot be read: the message, empty if the document has it already, and where in the form."""


def _read_form(
    document: Document,
    path: KeyPath,
    spec: ParameterSpec,
    given: object,
    extra: Sequence[str] = ("when",),
    suffix: str = "",
) -> Distribution | None:
    """Read a value or a form into what may be drawn; None if there is a fault, which the document has then.

    Args:
        extra: Keys that may stand beside a form.
        suffix: Follows a fault of a value: for which methods the law is.
    """

    def checked(values: Mapping[KeyPath, object]) -> tuple[Scalar, ...]:
        own = list[Scalar]()
        for inside, value in values.items():
            here = (*path, *inside)
            try:
                own.append(spec.check(value))
            except ValueError as error:
                document.refuse(here, str(error), value, suffix)
        if len(own) < len(values):
            raise _Refused("")
        return tuple(own)

    try:
        if not isinstance(given, dict):
            if isinstance(given, list) and spec.kind != "modules":
                raise _Refused(f"must be a value or a form, but got a list; write {{choice: {shown(given)}}}.")
            return Distribution("constant", checked({(): given}))
        forms = [form for form in _OPTIONS if form in given]
        if len(forms) != 1:
            got = f"{len(forms)}: {one_of(forms)}" if forms else one_of(given) or "none"
            slip = next((key for key in given if key not in forms and meant(key, _OPTIONS)), "")
            law = asking(f"must have exactly one of: {one_of(_OPTIONS)}", slip, _OPTIONS)
            raise _Refused(f"{law}, but got {got}.")
        (form,) = forms
        known, written = (form, *_OPTIONS[form], *extra), given[form]
        for key in given.keys() - set(known):
            document.fault((*path, key), f"{must_be(key, known)}, but got {key!r}.")
        if form == "value":
            return Distribution("constant", checked({("value",): written}))
        if form == "choice":
            if not isinstance(written, list) or not written:
                raise _Refused(f"must be a list of at least one value, but got {shown(written)}.", form)
            values = checked({(form, index): item for index, item in enumerate(written)})
            for index, value in enumerate(values):
                if any(spec.same(value, other) for other in values[:index]):
                    raise _Refused(f"must list each value once, but {shown(written[index])} came before.", form, index)
            return Distribution("choice", values)
        return _read_range(document, path, spec, given, form, checked)
    except _Refused as refused:
        message, *inside = refused.args
        if message:
            document.fault((*path, *inside), message)
        return None


def _read_range(
    document: Document,
    path: KeyPath,
    spec: ParameterSpec,
    given: Mapping[str, Any],
    form: str,
    checked: Callable[[Mapping[KeyPath, object]], tuple[Scalar, ...]],
) -> Distribution:
    bounds: Any = given[form]
    log, step = form == "log_uniform" or given.get("log", False), given.get("step")
    if spec.kind != ("int" if form == "int" else "float"):
        remedy = {"int": "int or choice", "float": "uniform (with step) or choice"}.get(spec.kind, "choice")
        raise _Refused(f"must be {spec}, so {form} does not fit; use {remedy}.", form)
    if not isinstance(log, bool):
        raise _Refused(f"must be true or false, but got {shown(log)}.", "log")
    if form == "log_uniform":
        step = None
    elif step is not None:
        try:
            step = ParameterSpec(spec.kind, low=0, above=True).check(step)
        except ValueError as error:
            document.refuse((*path, "step"), str(error), step)
            step = None
    if log and step not in (None, 1):
        raise _Refused("must be left out beside log: true, where steps grow with the value.", "step")
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise _Refused(f"must be [low, high], but got {shown(bounds)}.", form)
    low, high = map(float, checked({(form, index): bound for index, bound in enumerate(bounds)}))
    if low >= high:
        raise _Refused(f"must have low < high, but got {shown(bounds)}; one value is a constant.", form)
    if log and low <= 0:
        raise _Refused(f"must be above 0, as logarithms need, but got {shown(bounds[0])}.", form, 0)
    if step is not None:
        first, last, by = (Decimal(str(number)) for number in (*bounds, step))
        if last - first > by * _MAX_STEPS:
            law = f"must divide {first} to {last} into at most {_MAX_STEPS:,} steps"
            raise _Refused(f"{law}, but got {step}.", "step")
        if (last - first) % by:
            end = first + (last - first) // by * by
            law = f"must lead from {first} to {last} exactly, but got {step}"
            raise _Refused(f"{law}; nearest: high {end} or {end + by}.", "step")
    if form == "int":
        return Distribution("int", low=int(low), high=int(high), step=int(step or 1), log=log)
    return Distribution("float", low=low, high=high, step=None if step is None else float(step), log=log)


# ---- the section of parameters ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Item:
    """One of the forms that a parameter is declared by.

    Args:
        methods: To whose trials it may apply: they take the parameter, and no item before it is for all of them. None
            if there is a fault.
        distribution: None if there is a fault.
    """

    path: KeyPath
    given: object
    methods: tuple[str, ...]
    distribution: Distribution | None


def _read_parameters(
    document: Document, section: object, method: Parameter, named: Mapping[str, PeftSettings]
) -> dict[str, Parameter]:
    """Read the section into parameters, in the file's order; faults go to the document.

    Conditions are read last, since they may name parameters that come later.

    Args:
        method: The methods whose own parameters the section may have beside those of all. It comes first in what is
            returned.
        named: The methods of `peft_methods`.
    """
    if not isinstance(section, dict):
        document.refuse((PARAMETERS,), "must map parameter names to values", section)
        return {}
    methods = {str(name): get_method(str(name), named.get(str(name))) for name in method.possible or ()}
    laws: dict[str, dict[str, ParameterSpec]] = {}
    for each in methods.values():
        for name, spec in parameter_specs(each).items():
            laws.setdefault(name, {})[each.name] = spec
    reader = _ParametersReader(document, tuple(methods), laws)
    parameters, forms = {METHOD: method}, dict[str, list[_Item]]()
    for name, given in section.items():
        if name in laws:
            forms[name] = reader.items(name, given)
            alternatives = tuple(Alternative(item.distribution) for item in forms[name] if item.distribution)
            if len(alternatives) == len(forms[name]):
                takers = tuple(laws[name])
                parameters[name] = Parameter(name, alternatives, () if takers == reader.methods else takers)
        else:
            law = next((each.not_offered[name] for each in methods.values() if name in each.not_offered), "")
            owners = [other for other, entry in METHODS.importable().items() if name in entry.parameters]
            if name == METHOD:
                law = "must stand at the top of the file, beside `parameters`: `method: {choice: [...]}`."
            elif not law and owners:
                lacking = f"{both(reader.methods)} {'does' if len(methods) == 1 else 'do'} not"
                belongs = f"which method {one_of(owners)} takes and {lacking}"
                law = f"{must_be(name, laws)}, but got {name!r}, {belongs}."
            document.fault((PARAMETERS, name), law or f"{must_be(name, laws)}, but got {name!r}.")
    for name, by_method in laws.items():
        needing = [each for each, spec in by_method.items() if spec.is_required]
        if name not in section and needing:
            by_methods = f" by {one_of(needing)}" if len(methods) > 1 else ""
            law = f"is required{by_methods}: {by_method[needing[0]]}, or a range of them."
            document.fault((PARAMETERS, name), law)
    for name, items in forms.items():
        whens = [reader.condition(parameters, forms, name, item) for item in items]
        if (read := parameters.get(name)) is not None:
            pairs = zip(read.alternatives, whens, strict=True)
            parameters[name] = replace(read, alternatives=tuple(replace(own, when=when) for own, when in pairs))
    try:
        drawing_order(parameters.values())
    except CycleError as error:
        circle: list[str] = error.args[1]
        law = f"must not lead back to itself, but got {' -> '.join(reversed(circle))}."
        document.fault((PARAMETERS, circle[-1], "when"), law)
    return parameters


@dataclass(frozen=True)
class _ParametersReader:
    """Reads what stands at each parameter.

    Args:
        laws: Of each parameter, by the methods that take it.
    """

    document: Document
    methods: tuple[str, ...]
    laws: Mapping[str, Mapping[str, ParameterSpec]]

    def items(self, name: str, given: object) -> list[_Item]:
        """Return the forms of a parameter, each with the methods that it may be for.

        An item behind one that always holds is a fault, and so is a required parameter that some trial would lack.
        """
        path, takers, document = (PARAMETERS, name), tuple(self.laws[name]), self.document
        given_items: list[tuple[KeyPath, object]] = [(path, given)]
        if isinstance(given, list) and any(isinstance(item, dict) for item in given):
            given_items = [((*path, index), form) for index, form in enumerate(given)]
        items, left = list[_Item](), takers
        for here, form in given_items:
            when, methods = as_mapping(form).get("when", {}), left or takers
            if METHOD in (named := as_mapping(when)):
                is_list = isinstance(named[METHOD], list)
                wanted = named[METHOD] if is_list else [named[METHOD]]
                for number, method in enumerate(wanted):
                    if method in self.methods and method not in takers:
                        law = f"must name a method that takes {name}: {one_of(takers)}"
                        inside = (*here, "when", METHOD, *([number] if is_list else []))
                        document.refuse(inside, law, method)
                asked = tuple(method for method in takers if method in wanted)
                methods = tuple(method for method in asked if method in left) or asked
            drawn = None
            if (spec := self._joint_law(name, here, methods)) is not None:
                is_joint = spec not in self.laws[name].values()
                suffix = f", as {both(methods)} take it" if is_joint else ""
                drawn = _read_form(document, here, spec, form, suffix=suffix)
            items.append(_Item(here, form, methods, drawn))
            if isinstance(when, dict) and when.keys() <= {METHOD}:  # every trial of its methods has it
                left = tuple(method for method in left if method not in methods)
            if here != given_items[-1][0] and "when" not in as_mapping(form):
                law = "must have `when`, as all but the last of a list: those after it would never be drawn."
                document.fault(here, law)
        if uncovered := [method for method in left if self.laws[name][method].is_required]:
            of_methods = f" of {both(uncovered)}" if len(self.methods) > 1 else ""
            why = f"since every trial{of_methods} needs a {name}."
            if given_items[0][0] == path:
                document.fault((*path, "when"), f"must stand in a list of forms whose last has no `when`, {why}")
            else:
                document.fault(path, f"must end with an item without `when`, {why}")
        return items

    def _joint_law(self, name: str, path: KeyPath, methods: Sequence[str]) -> ParameterSpec | None:
        """Return the law of a value that suits all of these methods; None if there is none."""
        by_method = self.laws[name]
        laws = list(dict.fromkeys(by_method[method] for method in methods or by_method))
        if not methods and len(laws) > 1:
            return None  # whose law it is meant by is not known
        law = laws[0]
        if len({replace(each, default=None) for each in laws}) == 1:
            return law
        low, high = max(each.low for each in laws), min(each.high for each in laws)
        names = tuple(word for word in law.names if all(word in each.names for each in laws))
        is_joint = all(type(each) is ParameterSpec and each.kind == law.kind for each in laws)
        if not is_joint or (law.kind == "name" and not names) or low > high:
            each_law = "; ".join(f"{by_method[method]} for {method}" for method in methods)
            remedy = "must be declared in a list, an item for each method with `when: {method: ...}`"
            self.document.fault(path, f"{remedy}, since its values differ: {each_law}.")
            return None
        above = any(each.above and each.low == low for each in laws)
        below = any(each.below and each.high == high for each in laws)
        return ParameterSpec(law.kind, low=low, above=above, high=high, below=below, names=names)

    def condition(
        self, parameters: Mapping[str, Parameter], forms: Mapping[str, object], name: str, item: _Item
    ) -> Condition:
        """Return the parameters that an item's `when` asks for, each with the values that it may have."""
        if "when" not in as_mapping(item.given):
            return ()
        path, given, fault = (*item.path, "when"), as_mapping(item.given)["when"], self.document.fault
        if not isinstance(given, dict) or not given:
            fault(path, f"must map parameters to the values they must have, but got {shown(given)}.")
            return ()
        conditions = list[tuple[str, tuple[Scalar, ...]]]()
        for other, wanted in given.items():
            if other != METHOD and other not in forms:
                names = [*([METHOD] if len(self.methods) > 1 else []), *forms]
                law = must_be(other, names, "must name a parameter of this space")
                fault((*path, other), f"{law}, but got {other!r}.")
            elif other in parameters:  # else its own fault is known already
                conditions.append((other, self._wanted((*path, other), parameters[other], wanted)))
                takers = tuple(self.laws[other]) if other != METHOD else item.methods
                if item.methods and not set(item.methods) & set(takers):  # no trial has both
                    law = f"must name a parameter that trials with {name} have (those of {both(item.methods)})"
                    verb = "takes" if len(takers) == 1 else "take"
                    fault((*path, other), f"{law}, but only {both(takers)} {verb} {other}.")
        return tuple(conditions)

    def _wanted(self, path: KeyPath, other: Parameter, wanted: object) -> tuple[Scalar, ...]:
        """Return the values of another parameter that a condition asks for."""
        if (possible := other.possible) is None:
            law = f"must be a parameter with a list of values, but {other.name} may take any number in a range."
            self.document.fault(path, law)
            return ()
        if wanted == []:
            self.document.fault(path, "must be a value or a list of values, but got an empty list.")
        values = list[Scalar]()
        laws = dict.fromkeys(self.laws.get(other.name, {METHOD: method_spec(self.methods)}).values())
        for index, item in enumerate(wanted if isinstance(wanted, list) else [wanted]):
            here, law = (*path, index) if isinstance(wanted, list) else path, ""
            for spec in laws:  # the first that fits is the one that the value is meant by
                try:
                    value = spec.check(item)
                except ValueError as error:
                    law = law or str(error)
                    continue
                found = [each for each in possible if spec.same(value, each)][:1]
                known = list(map(str, possible[:20]))
                law = "" if found else must_be(value, known, f"must be a value that {other.name} may have")
                values += found
                break
            if law:
                self.document.refuse(here, law, item)
        return tuple(values)


def _read_peft_methods(document: Document) -> dict[str, PeftSettings]:
    """Return what the section says, by name, with all that `parameters` may search; faults go to the document."""
    section, read = as_mapping(document.data).get(_PEFT_METHODS), dict[str, PeftSettings]()
    if not isinstance(section, dict | None):
        message = f"must map names to configs of PEFT, as in {{vera: {{peft_type: VERA}}}}, but got {shown(section)}."
        document.fault((_PEFT_METHODS,), message)
    if not as_mapping(section):
        return read
    from loraxs_search.methods.peft_methods import REFUSED_FIELDS, config_fields

    for name, given in as_mapping(section).items():
        path, before, config = (_PEFT_METHODS, name), len(document.faults), as_mapping(given)
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or name in METHODS.names():
            law = "must be lower-case letters, digits and hyphens, and not the name of a method of this package"
            document.refuse(path, law, name)
        peft_type = config.get("peft_type")
        try:
            fields, fixed = config_fields(peft_type), dict[str, object]()
        except ValueError as error:
            document.refuse((*path, "peft_type"), str(error), peft_type)
            continue
        for field, value in config.items():
            here, spec = (*path, field), fields.get(field)
            if field in REFUSED_FIELDS:
                document.fault(here, f"{REFUSED_FIELDS[field]}.")
            elif field.endswith("dropout") and value:
                document.fault(here, "must be left out: trials train without dropout.")
            elif field not in fields and field != "peft_type":
                document.fault(here, f"{must_be(field, fields)}, but got {field!r}.")
            if field in fields:  # lists, mappings and null are PEFT's to judge
                try:
                    fixed[field] = value if spec is None or value is None else spec.check(value)
                except ValueError as error:
                    form = "; search it in `parameters`" if isinstance(value, dict) else ""
                    document.refuse(here, str(error), value, form)
        others = {key: spec for key, spec in fields.items() if spec and key not in config}
        searched = {key: spec.kind for key, spec in others.items() if not key.endswith("dropout")}
        if len(document.faults) == before:
            read[name] = PeftSettings(str(peft_type), fixed, searched)
    return read
