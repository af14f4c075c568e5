"""Overrides, which change a document before it is read.

`--set search.trials=24` is a dotted path and a YAML value. `--set method=lora` also leaves out what a space of several
methods says of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import yaml

from loraxs_search.search_space._peft_methods import known_methods
from loraxs_search.search_space.distributions import METHOD
from loraxs_search.search_space.document import BEHIND_FILES, Document, KeyPath, as_mapping
from loraxs_search.search_space.parameter_specs import SpaceSpecs

_PARAMETERS = "parameters"


def _select_methods(document: Document, before: object) -> None:
    """Leave out what is for methods that an override has taken from the space, and nothing else.

    A space that was given other methods than it had, or ones that are not installed, is left as it is: what does not
    fit is a fault.

    Args:
        before: What the file itself has at `method`.
    """
    earlier, wanted = _names(before), _names(document.data.get(METHOD))
    section, promotion = document.data.get(_PARAMETERS), as_mapping(document.data.get("promotion"))
    known = known_methods(document)
    if not wanted or not set(wanted) < set(earlier) or not set(wanted) <= known.keys():
        return
    if isinstance(section, dict):
        narrow = SpaceSpecs([known[name] for name in wanted])
        _narrow_parameters(document, section, earlier, SpaceSpecs([known[n] for n in earlier if n in known]), narrow)
    if isinstance(promotion.get("methods"), list):
        left = [name for name in promotion["methods"] if name in wanted or name not in earlier]
        promotion["methods"] = left or promotion["methods"]  # none of them left is a fault: all would be candidates


def _narrow_parameters(
    document: Document, section: dict[str, Any], earlier: Sequence[str], known: SpaceSpecs, kept: SpaceSpecs
) -> None:
    gone = {name for name in section if known.takers(name) and not kept.takers(name)}
    for name, given in list(section.items()):
        takers = kept.takers(name)
        if name in gone:
            if document.place((_PARAMETERS, name))[0] != BEHIND_FILES:  # reported as a fault later
                del section[name]
        elif isinstance(given, list) and any(isinstance(item, dict) for item in given):
            _narrow_list(document, (_PARAMETERS, name), given, earlier, takers, gone)
            if len(given) == 1 and not isinstance(given[0], dict):
                section[name] = given[0]  # a list of one value alone would be no declaration
        elif form := _narrowed(given, earlier, takers, gone):
            (section[name],) = form
        else:
            del section[name]


def _narrow_list(
    document: Document,
    path: KeyPath,
    forms: list[Any],
    earlier: Sequence[str],
    takers: Sequence[str],
    gone: Set[str],
) -> None:
    """Leave out forms for other methods, and those behind a form that now always holds."""
    left, kept = list(takers), dict[int, Any]()
    for index, given in enumerate(forms):
        if left and (form := _narrowed(given, earlier, left, gone)):
            (kept[index],) = form
            left = [method for method in left if method not in _taken(kept[index], left)]
    _move_lines(document, path, list(kept))
    forms[:] = kept.values()


def _narrowed(form: Any, earlier: Sequence[str], takers: Sequence[str], gone: Set[str]) -> list[Any]:
    """Return a form without what its condition says of other methods; nothing where it is for those alone.

    Args:
        gone: Parameters that the other methods alone take: a condition on one never holds.
    """
    when = as_mapping(form).get("when")
    if not isinstance(when, dict) or not when.keys() & {METHOD, *gone}:
        return [form]
    named = when.get(METHOD, list(takers))
    asked = named if isinstance(named, list) else [named]
    if not asked or not set(asked) <= set(earlier):
        return [form]  # reported as a fault later
    fitting = [method for method in asked if method in takers] if not when.keys() & gone else []
    if not fitting:
        return []
    others = {name: wanted for name, wanted in when.items() if name != METHOD}
    if set(fitting) < set(takers):
        return [{**form, "when": {**others, METHOD: fitting}}]
    if others:
        return [{**form, "when": others}]
    return [{key: value for key, value in form.items() if key != "when"}]


def _taken(form: object, left: Sequence[str]) -> Sequence[str]:
    """Return the methods of which every trial has this form."""
    when = as_mapping(form).get("when", {})
    return when.get(METHOD, left) if isinstance(when, dict) and when.keys() <= {METHOD} else ()


def _move_lines(document: Document, path: KeyPath, kept: Sequence[int]) -> None:
    """Keep the lines of some items of a list at their new places."""
    new_index: dict[str | int, int] = {old: new for new, old in enumerate(kept)}
    tables: tuple[dict[KeyPath, Any], ...] = (document.places, document.written)
    for table in tables:
        below = {key: table.pop(key) for key in list(table) if key[: len(path)] == path and len(key) > len(path)}
        for key, value in below.items():
            if (new := new_index.get(key[len(path)])) is not None:
                table[(*path, new, *key[len(path) + 1 :])] = value


def _names(given: object) -> list[str]:
    """Return the methods that are named at `method`; none if it is written in another way."""
    named = given.get("choice") if isinstance(given, dict) else given
    names = named if isinstance(named, list) else [named]
    return [name for name in names if isinstance(name, str)] if all(isinstance(n, str) for n in names) else []


Overrides = Sequence[str] | Mapping[str, Any]


def as_texts(overrides: Overrides) -> Sequence[str]:
    """Return overrides as the command line has them: values of a mapping as YAML."""
    if isinstance(overrides, str):
        return [overrides]
    if not isinstance(overrides, Mapping):
        return overrides
    return [f"{path}={_written(value)}" for path, value in overrides.items()]


def _written(value: Any) -> str:
    text = yaml.safe_dump(plain(value), default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def plain(value: object) -> object:
    """Return what YAML can write of a mapping's value."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return plain(value.tolist())
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Put each override into the document's data; later ones win. Faults go to the document.

    Fewer methods than the file has leave out what it says of the others.
    """
    methods = as_mapping(document.data).get(METHOD)
    for index, override in enumerate(overrides):
        document.put(override, index)
    if as_mapping(document.data).get(METHOD) != methods:
        _select_methods(document, methods)
