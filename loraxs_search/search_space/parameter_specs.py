"""The parameters that a space may search, each with the law of its values: common ones, and those of each method.

`target_modules` are group expressions, which become full module names: `attention`, `query+value`,
`all-linear@last-2`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

from loraxs_search.errors import TargetModulesError, UsageError, asking, did_you_mean, must_be, one_of
from loraxs_search.methods import METHODS
from loraxs_search.methods._base import Method
from loraxs_search.plugins import EntryPoints, ParameterSpec
from loraxs_search.records.base import LinearModule
from loraxs_search.records.literals import Head, HeadInit, LrSchedule, Scalar
from loraxs_search.records.trial import Hyperparameters
from loraxs_search.search_space.distributions import METHOD

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


class _Site(NamedTuple):
    """A module's place: the stack of layers it is in, which layer, and its name within the layer."""

    module: str
    stack: str
    layer: int
    name: str

    def is_in(self, group: str, own_names: Collection[str]) -> bool:
        """Whether it is in a group; `own_names` are those of all modules within their layers."""
        if group in ("attention", "ffn"):
            in_attention = any("attn" in part or "attention" in part for part in self.name.lower().split("."))
            return in_attention == (group == "attention")
        is_named = self.name == group if group in own_names else self.name.endswith(f".{group}")
        return is_named or group == "all-linear"


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
    matches = [(module.name, _SITE.fullmatch(module.name)) for module in modules]
    sites = [_Site(name, match["stack"], int(match["layer"]), match["name"]) for name, match in matches if match]
    own_names = dict.fromkeys(site.name for site in sites)
    if not sites:
        law = "`target_modules` must name linear layers, but the base model has none in its layers."
        raise TargetModulesError(law, hint=_HINT)
    for group in groups:
        if not any(site.is_in(group, own_names) for site in sites):
            first, listed = did_you_mean(group, [*own_names, *GROUPS]), one_of([*own_names, *GROUPS], group)
            law = f"{first}`target_modules` must be made of: {listed}, but got {group!r}."
            raise TargetModulesError(law, hint=_HINT)
    layers: dict[str, set[int]] = {}  # of each stack
    for site in sites:
        layers.setdefault(site.stack, set()).add(site.layer)
    if last is not None and last > (most := max(map(len, layers.values()))):
        law = f"`@last-K` must have K in 1..{most}, the model's layers, but got {expression!r}."
        raise TargetModulesError(law, hint=_HINT)
    kept = {stack: sorted(numbers)[-(last or len(numbers)) :] for stack, numbers in layers.items()}
    chosen = [site for site in sites if any(site.is_in(group, own_names) for group in groups)]
    if not (names := tuple(site.module for site in chosen if site.layer in kept[site.stack])):
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
