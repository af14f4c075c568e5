"""Module group expressions -> full module names: `attention`, `query+value`, `all-linear@last-2`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loraxs_search.errors import TargetModulesError, did_you_mean
from loraxs_search.records import LinearModule
from loraxs_search.search_space._faults import asking, one_of

GROUPS = ("attention", "ffn", "all-linear")
_EXPRESSION = re.compile(r"(?P<groups>[^@]+)(?:@last-(?P<last>\d+))?")
_NAME = re.compile(r"all-linear|\w+(?:\.\w+)*")
_HINT = "`loraxs-search check` lists what each group means"
_GRAMMAR = "GROUP[+GROUP...][@last-K]"


@dataclass(frozen=True)
class Expression:
    """A group expression taken apart; `last` is the number of last layers, None for all."""

    groups: tuple[str, ...]
    last: int | None = None

    def __str__(self) -> str:
        return "+".join(self.groups) + (f"@last-{self.last}" if self.last else "")


def parse_expression(text: str) -> Expression:
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
    return Expression(tuple(groups), int(match["last"]) if match["last"] else None)


def resolve_modules(expression: str, modules: Sequence[LinearModule]) -> tuple[str, ...]:
    """Return the full names that an expression means, in the order of `modules`, each once.

    A group is `attention` (linear layers below a component with attn or attention in its name), `ffn` (the other ones),
    `all-linear`, or a module's own name: its name within the layer (`output.dense`) if there is such a module, else the
    end of that name (`dense`). `@last-K` keeps the last K layers of each stack of layers.

    Raises:
        TargetModulesError: the expression cannot be read, or a part of it matches nothing.
    """
    try:
        parsed = parse_expression(expression)
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


def _last_layers(sites: Sequence[_Site], parsed: Expression, expression: str) -> set[str]:
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
