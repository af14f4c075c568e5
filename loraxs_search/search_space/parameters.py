"""`method`, and the parameters that a space may search: the law of each, and the `parameters` section.

A parameter is a value, a form, or a list of these under conditions. `target_modules` are group expressions, which
become full module names: `attention`, `query+value`, `all-linear@last-2`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from graphlib import CycleError
from typing import Any, get_args

from loraxs_search.errors import TargetModulesError, UsageError, asking, both, did_you_mean, meant, must_be, one_of
from loraxs_search.methods import METHODS, get_method
from loraxs_search.methods._base import Method
from loraxs_search.plugins import EntryPoints, ParameterSpec
from loraxs_search.records.base import LinearModule
from loraxs_search.records.literals import Head, HeadInit, LrSchedule, Scalar
from loraxs_search.records.trial import Hyperparameters, PeftSettings
from loraxs_search.search_space.distributions import (
    METHOD,
    PARAMETERS,
    Alternative,
    Condition,
    Distribution,
    Parameter,
    drawing_order,
)
from loraxs_search.search_space.document import Document, KeyPath, as_mapping, shown

# ---- module groups ---------------------------------------------------------------------------------------------------
GROUPS = ("attention", "ffn", "all-linear")
_EXPRESSION = re.compile(r"(?P<groups>[^@]+)(?:@last-(?P<last>\d+))?")
_SITE = re.compile(r"(?P<stack>(?:.*?\.)?)(?P<layer>\d+)\.(?P<name>.+)")
_NAME = re.compile(r"all-linear|\w+(?:\.\w+)*")
_HINT = "`loraxs-search check` lists what each group means"
_GRAMMAR = "GROUP[+GROUP...][@last-K]"


def _parse_groups(text: str) -> tuple[tuple[str, ...], int | None]:
    """Return the groups of `GROUP[+GROUP...][@last-K]`, and K; None for all layers.

    Raises:
        ValueError: the text is not such an expression; the message states the law.
    """
    match = _EXPRESSION.fullmatch(re.sub(r"\s+", "", text))
    if match is None or match["last"] == "0":
        raise ValueError(f"must be {_GRAMMAR} with K at least 1, as in attention@last-2")
    groups = match["groups"].split("+")
    for group in groups:
        if not _NAME.fullmatch(group):
            law = f"must be {_GRAMMAR}, each GROUP one of {one_of(GROUPS, group)}, or a module's own name"
            raise ValueError(asking(law, group, GROUPS))
    if len(set(groups)) < len(groups):
        raise ValueError("must name each group once")
    return tuple(groups), int(match["last"]) if match["last"] else None


def resolve_modules(expression: str, modules: Sequence[LinearModule]) -> tuple[str, ...]:
    """Return the full names that an expression means, in the order of `modules`, each once.

    A group is `attention` (linear layers below a component with attn or attention in its name), `ffn` (the other ones),
    `all-linear`, or a module's own name: its name within the layer (`output.dense`) if there is such a module, else the
    end of that name (`dense`). `@last-K` keeps the last K layers of each stack of layers.

    Raises:
        TargetModulesError: the expression cannot be read, or a part of it matches nothing.
    """
    try:
        groups, last = _parse_groups(expression)
    except ValueError as error:
        raise TargetModulesError(f"`target_modules` {error}, but got {expression!r}.", hint=_HINT) from None
    # Of each module: the stack of layers it is in, which layer, and its name within the layer.
    matches = {module.name: _SITE.fullmatch(module.name) for module in modules}
    sites = {module: (match["stack"], int(match["layer"]), match["name"]) for module, match in matches.items() if match}
    own_names = dict.fromkeys(name for _, _, name in sites.values())

    def is_in(name: str, group: str) -> bool:
        if group in ("attention", "ffn"):
            in_attention = any("attn" in part or "attention" in part for part in name.lower().split("."))
            return in_attention == (group == "attention")
        is_named = name == group if group in own_names else name.endswith(f".{group}")
        return is_named or group == "all-linear"

    if not sites:
        law = "`target_modules` must name linear layers, but the base model has none in its layers."
        raise TargetModulesError(law, hint=_HINT)
    for group in groups:
        if not any(is_in(name, group) for name in own_names):
            first, listed = did_you_mean(group, [*own_names, *GROUPS]), one_of([*own_names, *GROUPS], group)
            law = f"{first}`target_modules` must be made of: {listed}, but got {group!r}."
            raise TargetModulesError(law, hint=_HINT)
    layers: dict[str, set[int]] = {}  # of each stack
    for stack, layer, _ in sites.values():
        layers.setdefault(stack, set()).add(layer)
    if last is not None and last > (most := max(map(len, layers.values()))):
        law = f"`@last-K` must have K in 1..{most}, the model's layers, but got {expression!r}."
        raise TargetModulesError(law, hint=_HINT)
    kept = {stack: sorted(numbers)[-(last or len(numbers)) :] for stack, numbers in layers.items()}
    names = tuple(
        module
        for module, (stack, layer, name) in sites.items()
        if layer in kept[stack] and any(is_in(name, group) for group in groups)
    )
    if not names:
        law = f"`{expression}` must name at least one linear layer, but the last layers hold none."
        raise TargetModulesError(law, hint=_HINT)
    return names


def check_entry(registry: EntryPoints[Any], noun: str, name: Any) -> str:
    """Return the name of an entry.

    Args:
        noun: What an entry is, with its article.
    Raises:
        ValueError: no entry has the name, or the entry cannot be imported.
    """
    if name not in registry.names():
        raise ValueError(must_be(name, registry.names()))
    try:
        registry.get(name)
    except UsageError as error:
        raise ValueError(f"must be {noun} that can be imported ({error.message})") from error
    return str(name)


class _ModulesSpec(ParameterSpec):
    """The law of `target_modules`: a module group expression."""

    def __str__(self) -> str:
        return f"a module group ({one_of(GROUPS)}, or module names joined by +; @last-K for the last K layers)"

    def check(self, value: object) -> Scalar:
        """Return the expression in its one spelling.

        Raises:
            ValueError: it cannot be read; the message states the law.
        """
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            value = "+".join(value)
        if not isinstance(value, str):
            raise ValueError(f"must be {self}")
        groups, last = _parse_groups(value)
        return "+".join(groups) + (f"@last-{last}" if last else "")

    def same(self, one: Scalar, other: Scalar) -> bool:
        """Whether two checked values mean the same: `query+value` is `value+query`."""
        (groups, last), (others, other_last) = _parse_groups(str(one)), _parse_groups(str(other))
        return (set(groups), last) == (set(others), other_last)


# `head_learning_rate` has none: it is the trial's `learning_rate` where it is left out.
COMMON: Mapping[str, ParameterSpec] = {
    "target_modules": _ModulesSpec(
        "modules",
        default="all-linear",
        about="Layers to adapt: `attention`, `ffn`, `all-linear`, or module names, joined by `+`. `@last-K`"
        " keeps the last K layers of the model.",
    ),
    "head": ParameterSpec(
        "name",
        names=get_args(Head),
        default=Hyperparameters.head,
        about="`full` trains the whole head, `output` its last layer alone.",
    ),
    "head_init": ParameterSpec(
        "name",
        names=get_args(HeadInit),
        default="probe",
        about="Where the head starts: `probe` fits its last layer to the untouched base first, `random` draws it.",
    ),
    "learning_rate": ParameterSpec("float", above=True, about="Learning rate of the adapter."),
    "head_learning_rate": ParameterSpec(
        "float", above=True, optional=True, about="Learning rate of the head. The default is `learning_rate`."
    ),
    "weight_decay": ParameterSpec("float", default=Hyperparameters.weight_decay, about="Weight decay of AdamW."),
    "adam_beta1": ParameterSpec(
        "float", high=1.0, below=True, default=Hyperparameters.adam_beta1, about="Decay of AdamW's mean gradient."
    ),
    "adam_beta2": ParameterSpec(
        "float",
        high=1.0,
        below=True,
        default=Hyperparameters.adam_beta2,
        about="Decay of AdamW's mean squared gradient.",
    ),
    "lr_schedule": ParameterSpec(
        "name",
        names=get_args(LrSchedule),
        default=Hyperparameters.lr_schedule,
        about="`linear` and `cosine` fall to 0 at the last step, `constant` does not.",
    ),
    "warmup_ratio": ParameterSpec(
        "float",
        high=1.0,
        default=Hyperparameters.warmup_ratio,
        about="Share of the steps, at the start, in which both learning rates rise.",
    ),
    "max_grad_norm": ParameterSpec(
        "float",
        default=Hyperparameters.max_grad_norm,
        about="Limit on the norm of a trial's gradient, adapter and head together. 0 means no limit.",
    ),
    "batch_size": ParameterSpec(
        "int", low=1, high=65536, default=Hyperparameters.batch_size, about="Rows in one step."
    ),
}


def parameter_specs(method: Method | type[Method]) -> dict[str, ParameterSpec]:
    """Return every parameter that trials of this method may have, the method's own first."""
    return {**method.parameters, **COMMON}


class _MethodSpec(ParameterSpec):
    """The law of `method`: a registered one that can be imported, or one that the space names."""

    def check(self, value: object) -> Scalar:
        if value in METHODS.names():
            return check_entry(METHODS, "a method", value)
        return super().check(value)


def method_spec(named: Collection[str] = ()) -> ParameterSpec:
    """Return the law of `method`, with the methods that are known by now.

    Args:
        named: Those that `peft_methods` of the space names.
    """
    return _MethodSpec("name", names=tuple(dict.fromkeys([*METHODS.names(), *named])))


PEFT_METHODS = "peft_methods"
_OPTIONS = {"value": (), "choice": (), "uniform": ("step",), "log_uniform": (), "int": ("step", "log")}  # by form
_MAX_STEPS = 10**9  # decimals of 28 digits divide exactly far beyond it


# ---- one form --------------------------------------------------------------------------------------------------------
class _Refused(Exception):  # noqa: N818  # it ends the reading of one form, and is no error
    """A form cannot be read.

    Args:
        inside: Where in it.
        message: What is wrong; empty if the document has it already.
    """

    def __init__(self, inside: KeyPath = (), message: str = "") -> None:
        self.inside, self.message = inside, message


@dataclass(frozen=True)
class _FormReader:
    """Reads a value or a form.

    Args:
        extra: Keys that may stand beside a form.
        suffix: Follows a fault: for which methods the law is.
    """

    document: Document
    path: KeyPath
    spec: ParameterSpec
    extra: tuple[str, ...] = ("when",)
    suffix: str = ""

    def read(self, given: object) -> Distribution | None:
        """Return what may be drawn; None if there is a fault, which the document has then."""
        try:
            return self._form(given)
        except _Refused as refused:
            if refused.message:
                self.document.fault((*self.path, *refused.inside), refused.message)
            return None

    def _form(self, given: object) -> Distribution:
        if not isinstance(given, dict):
            if isinstance(given, list) and self.spec.kind != "modules":
                law = "must be a value or a form, but got a list"
                raise _Refused((), f"{law}; write {{choice: {shown(given)}}}.")
            return Distribution("constant", self._values({(): given}))
        forms = [form for form in _OPTIONS if form in given]
        if len(forms) != 1:
            got = f"{len(forms)}: {one_of(forms)}" if forms else one_of(given) or "none"
            slip = next((key for key in given if key not in forms and meant(key, _OPTIONS)), "")
            law = asking(f"must have exactly one of: {one_of(_OPTIONS)}", slip, _OPTIONS)
            raise _Refused((), f"{law}, but got {got}.")
        (form,) = forms
        known = (form, *_OPTIONS[form], *self.extra)
        for key in given:
            if key not in known:
                self.document.fault((*self.path, key), f"{must_be(key, known)}, but got {key!r}.")
        if form == "value":
            return Distribution("constant", self._values({("value",): given["value"]}))
        if form != "choice":
            return self._range(form, given)
        if not isinstance(items := given["choice"], list) or not items:
            raise _Refused(("choice",), f"must be a list of at least one value, but got {shown(items)}.")
        values = self._values({("choice", index): item for index, item in enumerate(items)})
        for index, value in enumerate(values):
            if any(self.spec.same(value, other) for other in values[:index]):
                law = f"must list each value once, but {shown(items[index])} came before."
                raise _Refused(("choice", index), law)
        return Distribution("choice", values)

    def _range(self, form: str, given: Mapping[str, Any]) -> Distribution:
        kind, log, bounds = self.spec.kind, form == "log_uniform" or given.get("log", False), given[form]
        if kind != ("int" if form == "int" else "float"):
            remedy = {"int": "int or choice", "float": "uniform (with step) or choice"}.get(kind, "choice")
            raise _Refused((form,), f"must be {self.spec}, so {form} does not fit; use {remedy}.")
        if not isinstance(log, bool):
            raise _Refused(("log",), f"must be true or false, but got {shown(log)}.")
        step: Any = given.get("step") if "step" in _OPTIONS[form] else None
        if step is not None:
            try:
                step = ParameterSpec(kind, low=0, above=True).check(step)
            except ValueError as error:
                self.document.fault((*self.path, "step"), f"{error}, but got {shown(step)}.")
                step = None
        if log and step not in (None, 1):
            raise _Refused(("step",), "must be left out beside log: true, where steps grow with the value.")
        if not isinstance(bounds, list) or len(bounds) != 2:
            raise _Refused((form,), f"must be [low, high], but got {shown(bounds)}.")
        low, high = map(float, self._values({(form, index): bound for index, bound in enumerate(bounds)}))
        if low >= high:
            raise _Refused((form,), f"must have low < high, but got {shown(bounds)}; one value is a constant.")
        if log and low <= 0:
            raise _Refused((form, 0), f"must be above 0, as logarithms need, but got {shown(bounds[0])}.")
        if step is not None:
            first, last, by = (Decimal(str(number)) for number in (*bounds, step))
            if last - first > by * _MAX_STEPS:
                law = f"must divide {first} to {last} into at most {_MAX_STEPS:,} steps"
                raise _Refused(("step",), f"{law}, but got {step}.")
            if (last - first) % by:
                end = first + (last - first) // by * by
                law = f"must lead from {first} to {last} exactly"
                raise _Refused(("step",), f"{law}, but got {step}; nearest: high {end} or {end + by}.")
        if form == "int":
            return Distribution("int", low=int(low), high=int(high), step=int(step or 1), log=log)
        return Distribution("float", low=low, high=high, step=step, log=log)

    def _values(self, given: Mapping[KeyPath, object]) -> tuple[Scalar, ...]:
        """Return values in the parameter's own type; every fault goes to the document."""
        values = []
        for inside, value in given.items():
            try:
                values.append(self.spec.check(value))
            except ValueError as error:
                got = self.document.got((*self.path, *inside), value)
                self.document.fault((*self.path, *inside), f"{error}, but got {got}{self.suffix}.")
        if len(values) < len(given):
            raise _Refused
        return tuple(values)


def read_method(document: Document, given: object, named: Mapping[str, PeftSettings]) -> Parameter | None:
    """Read the `method` of a space, one or a choice of several; None if its parameters cannot be read then.

    Args:
        named: The methods of `peft_methods`.
    """
    distribution = _FormReader(document, (METHOD,), method_spec(named), extra=()).read(given)
    return None if distribution is None else Parameter(METHOD, (Alternative(distribution),))


# ---- the section -----------------------------------------------------------------------------------------------------
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


def read_parameters(
    document: Document,
    section: object,
    method: Parameter,
    named: Mapping[str, PeftSettings],
    trained: Sequence[str] | None = None,
) -> dict[str, Parameter]:
    """Read the section into parameters, in the file's order; faults go to the document.

    Conditions are read last, since they may name parameters that come later.

    Args:
        method: The methods whose own parameters the section may have beside those of all. It comes first in what is
            returned. What the section says of those that are not installed is passed over.
        named: The methods of `peft_methods`.
        trained: Those of the methods that trials train, all by default. What the section says of the others is passed
            over, too.
    """
    if not isinstance(section, dict):
        document.fault((PARAMETERS,), f"must map parameter names to values, but got {shown(section)}.")
        return {}
    asked, known = [str(name) for name in method.possible or ()], METHODS.importable()
    installed = [get_method(name, named.get(name)) for name in asked if name in named or name in known]
    methods = [each for each in installed if trained is None or each.name in trained]
    absent = frozenset(asked) - {each.name for each in methods}
    laws: dict[str, dict[str, ParameterSpec]] = {}
    for each in methods:
        for name, spec in parameter_specs(each).items():
            laws.setdefault(name, {})[each.name] = spec
    reader = _SectionReader(document, tuple(each.name for each in methods), absent, laws)
    parameters, forms = {METHOD: method}, dict[str, list[_Item]]()
    untrained = {name for each in installed for name in each.parameters} - laws.keys()
    for name, given in section.items():
        if name in untrained:
            forms[name] = []
            continue
        if name not in laws:
            law = next((each.not_offered[name] for each in methods if name in each.not_offered), "")
            owners = [other for other, entry in known.items() if name in entry.parameters]
            if name == METHOD:
                law = "must stand at the top of the file, beside `parameters`: `method: {choice: [...]}`."
            elif not law and owners:
                lacking = f"{both(reader.methods)} {'does' if len(methods) == 1 else 'do'} not"
                belongs = f"which method {one_of(owners)} takes and {lacking}"
                law = f"{must_be(name, laws)}, but got {name!r}, {belongs}."
            document.fault((PARAMETERS, name), law or f"{must_be(name, laws)}, but got {name!r}.")
            continue
        forms[name] = reader.items(name, given)
        alternatives = tuple(Alternative(item.distribution) for item in forms[name] if item.distribution)
        if len(alternatives) == len(forms[name]):
            takers = tuple(laws[name])
            parameters[name] = Parameter(name, alternatives, () if takers == reader.methods else takers)
    for name, by_method in laws.items():
        if name not in section and (needing := _needing(by_method)):
            by_methods = f" by {one_of(needing)}" if len(methods) > 1 else ""
            law = f"is required{by_methods}: {by_method[needing[0]]}, or a range of them."
            document.fault((PARAMETERS, name), law)
    for name, items in forms.items():
        whens = [reader.condition(parameters, forms, name, item) for item in items]
        if (read := parameters.get(name)) is not None:
            pairs = zip(read.alternatives, whens, strict=True)
            parameters[name] = replace(read, alternatives=tuple(replace(each, when=when) for each, when in pairs))
    try:
        drawing_order(parameters.values())
    except CycleError as error:
        circle: list[str] = error.args[1]
        law = f"must not lead back to itself, but got {' -> '.join(reversed(circle))}."
        document.fault((PARAMETERS, circle[-1], "when"), law)
    return parameters


def _needing(by_method: Mapping[str, ParameterSpec]) -> list[str]:
    """Return the methods whose trials must have a parameter."""
    return [method for method, spec in by_method.items() if spec.default is None and not spec.optional]


@dataclass(frozen=True)
class _SectionReader:
    """Reads what stands at each parameter.

    Args:
        absent: Methods of the space that are not installed, or that no trial trains.
        laws: Of each parameter, by the methods that take it.
    """

    document: Document
    methods: tuple[str, ...]
    absent: frozenset[str]
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
                        document.fault(inside, f"{law}, but got {shown(method)}.")
                if wanted and all(method in self.absent for method in wanted):
                    continue
                asked = tuple(method for method in takers if method in wanted)
                methods = tuple(method for method in asked if method in left) or asked
            items.append(_Item(here, form, methods, self._distribution(name, here, form, methods)))
            if isinstance(when, dict) and when.keys() <= {METHOD}:  # every trial of its methods has it
                left = tuple(method for method in left if method not in methods)
            if here != given_items[-1][0] and "when" not in as_mapping(form):
                law = "must have `when`, as all but the last of a list: those after it would never be drawn."
                document.fault(here, law)
        if uncovered := [method for method in _needing(self.laws[name]) if method in left]:
            of_methods = f" of {both(uncovered)}" if len(self.methods) > 1 else ""
            why = f"since every trial{of_methods} needs a {name}."
            if given_items[0][0] == path:
                document.fault((*path, "when"), f"must stand in a list of forms whose last has no `when`, {why}")
            else:
                document.fault(path, f"must end with an item without `when`, {why}")
        return items

    def _distribution(self, name: str, path: KeyPath, form: object, methods: Sequence[str]) -> Distribution | None:
        """Read a form by the law of a value that suits all of these methods."""
        by_method = self.laws[name]
        laws = list(dict.fromkeys(by_method[method] for method in methods or by_method))
        if not methods and len(laws) > 1:
            return None  # whose law it is meant by is not known
        law = laws[0]
        if len({replace(each, default=None) for each in laws}) > 1:
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
            law = ParameterSpec(law.kind, low=low, above=above, high=high, below=below, names=names)
        suffix = "" if law in laws else f", as {both(methods)} take it"
        return _FormReader(self.document, path, law, suffix=suffix).read(form)

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
            elif forms.get(other) == []:  # no trial has it
                conditions.append((other, ()))
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
        laws = dict.fromkeys(self.laws.get(other.name, {METHOD: method_spec((*self.methods, *self.absent))}).values())
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
                self.document.fault(here, f"{law}, but got {shown(item)}.")
        return tuple(values)


# ---- peft_methods ----
def read_peft_methods(document: Document) -> dict[str, PeftSettings]:
    """Return what the section says, by name, with all that `parameters` may search; faults go to the document."""
    section, read = as_mapping(document.data).get(PEFT_METHODS), dict[str, PeftSettings]()
    if not isinstance(section, dict | None):
        message = f"must map names to configs of PEFT, as in {{vera: {{peft_type: VERA}}}}, but got {shown(section)}."
        document.fault((PEFT_METHODS,), message)
    if not as_mapping(section):
        return read
    from loraxs_search.methods.peft_methods import REFUSED_FIELDS, config_fields, peft_types, refused_type

    for name, given in as_mapping(section).items():
        path, before, config = (PEFT_METHODS, name), len(document.faults), as_mapping(given)
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or name in METHODS.names():
            law = "must be a name of its own, in lower case, of letters, digits and hyphens"
            document.fault(path, f"{law}, but got {shown(name)}.")
        peft_type = config.get("peft_type")
        if peft_type not in (known := list(peft_types())):
            reason = refused_type(str(peft_type))
            law = f"must be another type: PEFT's {peft_type} {reason}" if reason else must_be(peft_type, known)
            document.fault((*path, "peft_type"), f"{law}, but got {shown(peft_type)}.")
            continue
        fields, fixed = config_fields(peft_type), dict[str, object]()
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
                    document.fault(here, f"{error}, but got {document.got(here, value)}{form}.")
        others = {key: spec for key, spec in fields.items() if spec and key not in config}
        searched = {key: spec.kind for key, spec in others.items() if not key.endswith("dropout")}
        if len(document.faults) == before:
            read[name] = PeftSettings(peft_type, fixed, searched)
    return read
