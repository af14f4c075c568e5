"""The parameters that a space may search: the law of each, what a trial draws, and when it has one.

`target_modules` are group expressions, which become full module names: `attention`, `query+value`, `all-linear@last-2`.
Distributions are plain frozen records, stored and compared without Optuna, which takes half a second to import.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from graphlib import TopologicalSorter
from itertools import chain
from math import isclose
from typing import TYPE_CHECKING, Any, Literal, get_args

from loraxs_search.errors import UsageError, asking, did_you_mean, must_be, one_of
from loraxs_search.methods import METHODS
from loraxs_search.methods._base import Method
from loraxs_search.plugins import EntryPoints, ParameterSpec
from loraxs_search.records.codec import Head, HeadInit, LrSchedule, Scalar
from loraxs_search.records.task import LinearModule
from loraxs_search.records.trial import Hyperparameters

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

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
        UsageError: the expression cannot be read, or a part of it matches nothing.
    """
    try:
        groups, last = _parse_groups(expression)
    except ValueError as error:
        raise UsageError(f"`target_modules` {error}, but got {expression!r}.", hint=_HINT) from None
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
        raise UsageError(law, hint=_HINT)
    for group in groups:
        if not any(is_in(name, group) for name in own_names):
            first, listed = did_you_mean(group, [*own_names, *GROUPS]), one_of([*own_names, *GROUPS], group)
            law = f"{first}`target_modules` must be made of: {listed}, but got {group!r}."
            raise UsageError(law, hint=_HINT)
    layers: dict[str, set[int]] = {}  # of each stack
    for stack, layer, _ in sites.values():
        layers.setdefault(stack, set()).add(layer)
    if last is not None and last > (most := max(map(len, layers.values()))):
        law = f"`@last-K` must have K in 1..{most}, the model's layers, but got {expression!r}."
        raise UsageError(law, hint=_HINT)
    kept = {stack: sorted(numbers)[-(last or len(numbers)) :] for stack, numbers in layers.items()}
    names = tuple(
        module
        for module, (stack, layer, name) in sites.items()
        if layer in kept[stack] and any(is_in(name, group) for group in groups)
    )
    if not names:
        law = f"`{expression}` must name at least one linear layer, but the last layers hold none."
        raise UsageError(law, hint=_HINT)
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


# ---- what a trial draws ----
Same = Callable[[Scalar, Scalar], bool]  # whether two values of a parameter mean the same
Condition = tuple[tuple[str, tuple[Scalar, ...]], ...]  # parameter to the values it must have; all must hold
METHOD = "method"  # the parameter that spaces of several methods have
PARAMETERS = "parameters"  # the section


@dataclass(frozen=True)
class Distribution:
    """What a parameter's value may be, and how a trial draws it.

    Args:
        form: A `constant`, of which Optuna never hears; one of several values without an order, all of one type; or a
            range, drawn evenly, in steps if there is a step, or evenly in the logarithm.
        choices: Of a constant its one value.
    """

    form: Literal["constant", "choice", "int", "float"]
    choices: tuple[Scalar, ...] = ()
    low: int | float = 0
    high: int | float = 0
    step: int | float | None = None
    log: bool = False

    def __str__(self) -> str:
        if self.choices:
            known = ", ".join(map(str, self.choices))
            return known if self.form == "constant" else f"one of {known}"
        return f"in {self.low:g}..{self.high:g}{f' by {self.step:g}' if self.step not in (None, 1) else ''}"

    @property
    def values(self) -> Sequence[Scalar] | None:
        """Every value; None for a range of numbers, on which no condition can hang."""
        return (
            range(int(self.low), int(self.high) + 1, int(self.step or 1))
            if self.form == "int"
            else self.choices or None
        )

    @property
    def size(self) -> int | None:
        """How many values there are; None without a step."""
        if self.form == "float":  # Decimal, as in Optuna: 0.1 has no exact float
            low, high, step = (Decimal(str(number or 0)) for number in (self.low, self.high, self.step))
            return int((high - low) / step) + 1 if step else None
        return len(self.values or ())

    def find(self, value: Scalar, same: Same) -> Scalar | None:
        """Return the equal value that may be drawn, or None."""
        if self.form != "float":
            known = [value] if self.form == "int" and value in (self.values or ()) else self.choices
            return next((each for each in known if same(each, value)), None)
        if isinstance(value, str) or not self.low <= value <= self.high:
            return None
        steps = (value - self.low) / self.step if self.step else 0.0
        return float(value) if isclose(steps, round(steps), abs_tol=1e-8) else None

    def suggest(self, trial: BaseTrial, name: str) -> Scalar:
        """Draw a value."""
        if self.form == "constant":
            return self.choices[0]
        if self.form == "choice":
            value: Scalar = trial.suggest_categorical(name, list(self.choices))  # type: ignore[assignment]
            return value
        if self.form == "int":
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def optuna(self) -> BaseDistribution:
        """Return Optuna's own; only what is drawn has one."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.form == "choice":
            return CategoricalDistribution(self.choices)
        if self.form == "int":
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True)
class Alternative:
    """One way to draw a parameter.

    Args:
        when: What must hold for it. A parameter that is itself absent does not hold.
    """

    distribution: Distribution
    when: Condition = ()


@dataclass(frozen=True)
class Parameter:
    """A parameter of a space.

    Args:
        alternatives: The first whose condition holds is drawn.
            Where no condition holds, trials are without the parameter, and the record's default stands.
        methods: Those of the space's methods that take it, where some do not: trials of others never have it.
    """

    name: str
    alternatives: tuple[Alternative, ...]
    methods: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """How many values may be drawn; None is a range of numbers."""
        sizes = [alternative.distribution.size for alternative in self.alternatives]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def possible(self) -> Sequence[Scalar] | None:
        """Every value a trial may show, or None when there is no list of them."""
        values = [alternative.distribution.values for alternative in self.alternatives]
        listed = [each for each in values if each is not None]
        if len(listed) < len(values):
            return None
        return listed[0] if len(listed) == 1 else tuple(dict.fromkeys(chain(*listed)))

    def chosen(self, params: Mapping[str, Scalar]) -> int | None:
        """Return the index of the alternative that is drawn after these params; None when none is."""
        if self.methods and params.get(METHOD) not in self.methods:
            return None
        for index, alternative in enumerate(self.alternatives):
            if all(other in params and params[other] in values for other, values in alternative.when):
                return index
        return None

    def drawn_name(self, index: int) -> str:
        """Return the name that Optuna knows an alternative by; the first has the parameter's own."""
        return f"{self.name}[{index}]" if index else self.name

    def parents(self) -> list[str]:
        """Return the parameters that must be drawn before it."""
        implied = [METHOD] if self.methods else []
        return implied + [other for alternative in self.alternatives for other, _ in alternative.when]


def drawing_order(parameters: Iterable[Parameter], later: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the names so that each parameter comes after those its condition needs; the file's order otherwise.

    Args:
        later: Names that come after another one too.
    Raises:
        graphlib.CycleError: the conditions go in a circle.
    """
    # No sets: their order would differ between processes, and with it what is drawn.
    graph = {
        p.name: dict.fromkeys([*p.parents(), *([later[p.name]] if later and p.name in later else [])])
        for p in parameters
    }
    return tuple(name for name in TopologicalSorter(graph).static_order() if name in graph)


def parameters_of(parameters: Mapping[str, Parameter], method: str) -> dict[str, Parameter]:
    """Return the parameters of a method's trials in the file's order, without conditions on the method.

    Raises:
        graphlib.CycleError: the conditions go in a circle.
    """
    known: dict[str, Parameter] = {}
    for name in drawing_order(parameters.values()):
        parameter, resolved = parameters[name], list[Alternative]()
        for each in parameter.alternatives if method in (parameter.methods or (method,)) else ():
            conditions = dict(each.when)
            if method not in conditions.pop(METHOD, (method,)) or not conditions.keys() <= known.keys():
                continue  # it never holds
            resolved.append(replace(each, when=tuple(conditions.items())))
            if not conditions:  # those behind it are never drawn
                break
        if resolved and name != METHOD:
            known[name] = Parameter(name, tuple(resolved))
    return {name: known[name] for name in parameters if name in known}
