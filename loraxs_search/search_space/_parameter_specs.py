"""The parameters that a space may search, each with the law of its values: common ones, and those of each method.

`target_modules` are group expressions, which become full module names: `attention`, `query+value`,
`all-linear@last-2`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from loraxs_search.errors import TargetModulesError, UsageError, asking, did_you_mean, must_be, one_of
from loraxs_search.methods import METHODS, Method, ParameterSpec
from loraxs_search.plugins import EntryPoints
from loraxs_search.records import Head, HeadInit, Hyperparameters, LinearModule, LrSchedule, Scalar
from loraxs_search.search_space._distributions import METHOD

GROUPS = ("attention", "ffn", "all-linear")
_EXPRESSION = re.compile(r"(?P<groups>[^@]+)(?:@last-(?P<last>\d+))?")
_NAME = re.compile(r"all-linear|\w+(?:\.\w+)*")
_HINT = "`loraxs-search check` lists what each group means"
_GRAMMAR = "GROUP[+GROUP...][@last-K]"


@dataclass(frozen=True)
class _Expression:
    """A group expression taken apart; `last` is the number of last layers, None for all."""

    groups: tuple[str, ...]
    last: int | None = None

    def __str__(self) -> str:
        return "+".join(self.groups) + (f"@last-{self.last}" if self.last else "")


def _parse_expression(text: str) -> _Expression:
    """Take `GROUP[+GROUP...][@last-K]` apart.

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
    return _Expression(tuple(groups), int(match["last"]) if match["last"] else None)


def resolve_modules(expression: str, modules: Sequence[LinearModule]) -> tuple[str, ...]:
    """Return the full names that an expression means, in the order of `modules`, each once.

    A group is `attention` (linear layers below a component with attn or attention in its name), `ffn` (the other ones),
    `all-linear`, or a module's own name: its name within the layer (`output.dense`) if there is such a module, else the
    end of that name (`dense`). `@last-K` keeps the last K layers of each stack of layers.

    Raises:
        TargetModulesError: the expression cannot be read, or a part of it matches nothing.
    """
    try:
        parsed = _parse_expression(expression)
    except ValueError as error:
        raise TargetModulesError(f"`target_modules` {error}, but got {expression!r}.", hint=_HINT) from None
    sites = [site for site in map(_Site.of, modules) if site is not None]
    chosen: set[str] = set()
    for group in parsed.groups:
        matching = {site.module for site in sites if _matcher(group, sites)(site)}
        if not matching:
            raise TargetModulesError(_nothing(group, sites), hint=_HINT)
        chosen |= matching
    last = _last_layers(sites, parsed, expression)
    names = tuple(site.module for site in sites if site.module in chosen and site.module in last)
    if not names:
        raise TargetModulesError(
            f"`{expression}` must name at least one linear layer, but the last layers hold none.", hint=_HINT
        )
    return names


@dataclass(frozen=True)
class _Site:
    """A module's place: the stack of layers it is in, which layer, and its name within the layer."""

    module: str
    stack: str
    layer: int
    name: str

    @classmethod
    def of(cls, module: LinearModule) -> _Site | None:
        match = re.fullmatch(r"(?P<stack>(?:.*?\.)?)(?P<layer>\d+)\.(?P<name>.+)", module.name)
        return cls(module.name, match["stack"], int(match["layer"]), match["name"]) if match else None

    @property
    def in_attention(self) -> bool:
        return any("attn" in part or "attention" in part for part in self.name.lower().split("."))


def _matcher(group: str, sites: Sequence[_Site]) -> Callable[[_Site], bool]:
    if group == "all-linear":
        return lambda _: True
    if group in ("attention", "ffn"):
        return lambda site: site.in_attention == (group == "attention")
    if any(site.name == group for site in sites):
        return lambda site: site.name == group
    return lambda site: site.name.endswith(f".{group}")


def _last_layers(sites: Sequence[_Site], parsed: _Expression, expression: str) -> set[str]:
    if parsed.last is None:
        return {site.module for site in sites}
    layers: dict[str, set[int]] = {}
    for site in sites:
        layers.setdefault(site.stack, set()).add(site.layer)
    most = max(map(len, layers.values()))
    if parsed.last > most:
        raise TargetModulesError(
            f"`@last-K` must have K in 1..{most}, the model's layers, but got {expression!r}.", hint=_HINT
        )
    last = {stack: sorted(numbers)[-parsed.last :] for stack, numbers in layers.items()}
    return {site.module for site in sites if site.layer in last[site.stack]}


def _nothing(group: str, sites: Sequence[_Site]) -> str:
    own = dict.fromkeys(site.name for site in sites)
    if not own:
        return "`target_modules` must name linear layers, but the base model has none in its layers."
    first, listed = did_you_mean(group, [*own, *GROUPS]), one_of([*own, *GROUPS], group)
    return f"{first}`target_modules` must be made of: {listed}, but got {group!r}."


def known_entry(registry: EntryPoints[Any], noun: str) -> Callable[[Any], str]:
    """Return a validator that refuses a name that no entry has, or whose entry cannot be imported.

    Args:
        noun: What an entry is, with its article.
    """

    def check(name: Any) -> str:
        if name not in registry.names():
            raise ValueError(must_be(name, registry.names()))
        try:
            registry.get(name)
        except UsageError as error:
            raise ValueError(f"must be {noun} that can be imported ({error.message})") from error
        return str(name)

    return check


DEFAULT_TARGET_MODULES = "all-linear"


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
        return str(_parse_expression(value))

    def same(self, one: Scalar, other: Scalar) -> bool:
        """Whether two checked values mean the same: `query+value` is `value+query`."""
        left, right = _parse_expression(str(one)), _parse_expression(str(other))
        return (set(left.groups), left.last) == (set(right.groups), right.last)


# `head_learning_rate` has none: it is the trial's `learning_rate` where it is left out.
COMMON: Mapping[str, ParameterSpec] = {
    "target_modules": _ModulesSpec(
        "modules",
        default=DEFAULT_TARGET_MODULES,
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


def defaults_of(method: Method) -> dict[str, Scalar]:
    """Return what each parameter is that a trial of this method leaves out, where it may."""
    specs = parameter_specs(method)
    return {name: spec.default for name, spec in specs.items() if spec.default is not None}


class _MethodSpec(ParameterSpec):
    """The law of `method`: a registered one that can be imported, or one that the space names."""

    def check(self, value: object) -> Scalar:
        if value in METHODS.names():
            return known_entry(METHODS, "a method")(value)
        return super().check(value)


def method_spec(named: Collection[str] = ()) -> ParameterSpec:
    """Return the law of `method`, with the methods that are known by now.

    Args:
        named: Those that `peft_methods` of the space names.
    """
    return _MethodSpec("name", names=tuple(dict.fromkeys([*METHODS.names(), *named])))


class SpaceSpecs:
    """What the parameters of a space must be; each method of the space adds its own laws.

    Args:
        methods: Those that the space's trials may train.
    """

    def __init__(self, methods: Sequence[Method]) -> None:
        self.methods = tuple(method.name for method in methods)
        self._methods = methods
        self._specs = {method.name: parameter_specs(method) for method in methods}

    def takers(self, name: str) -> tuple[str, ...]:
        """Return the methods that take a parameter."""
        return tuple(method for method, specs in self._specs.items() if name in specs)

    def laws(self, name: str, methods: Sequence[str]) -> list[ParameterSpec]:
        """Return the different laws that a parameter has in these methods, which take it."""
        return list(dict.fromkeys(self._specs[method][name] for method in methods))

    def required(self) -> dict[str, list[str]]:
        """Return the parameters that trials must have, each with the methods that need it."""
        needs: dict[str, list[str]] = {}
        for method, specs in self._specs.items():
            for name, spec in specs.items():
                if spec.default is None and not spec.optional:
                    needs.setdefault(name, []).append(method)
        return needs

    def unknown(self, name: str) -> str:
        """Say that no method of the space has a parameter of this name, and whose it is."""
        for method in self._methods:
            if name in method.not_offered:
                return method.not_offered[name]
        if name == METHOD:
            return "must stand at the top of the file, beside `parameters`: `method: {choice: [...]}`."
        owners = [other for other, entry in METHODS.importable().items() if name in entry.parameters]
        lacking = f"{both(self.methods)} {'does' if len(self.methods) == 1 else 'do'} not"
        belongs = f", which method {one_of(owners)} takes and {lacking}" if owners else ""
        known = dict.fromkeys(other for specs in self._specs.values() for other in specs)
        return f"{must_be(name, known)}, but got {name!r}{belongs}."


def joint_law(laws: Sequence[ParameterSpec]) -> ParameterSpec | None:
    """Return the law of a value that obeys all of these; None if no value could."""
    first = laws[0]
    if len({replace(law, default=None) for law in laws}) == 1:
        return first
    if any(type(law) is not ParameterSpec or law.kind != first.kind for law in laws):
        return None
    low, high = max(law.low for law in laws), min(law.high for law in laws)
    names = tuple(name for name in first.names if all(name in law.names for law in laws))
    above = any(law.above and law.low == low for law in laws)
    below = any(law.below and law.high == high for law in laws)
    if (first.kind == "name" and not names) or low > high:
        return None
    return ParameterSpec(first.kind, low=low, above=above, high=high, below=below, names=names)


def both(names: Sequence[str]) -> str:
    """Return names as a sentence has them: `a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
