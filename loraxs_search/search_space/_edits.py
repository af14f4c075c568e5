"""What changes a document before it is read: overrides are put in, and keys of earlier versions are found.

`--set search.trials=24` is a dotted path and a YAML value. `--set method=lora` also leaves out what a space of several
methods says of the others. A new space that names what is gone is refused; a stored study stays readable.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import yaml

from loraxs_search.errors import StudyError
from loraxs_search.methods import GONE, METHODS
from loraxs_search.search_space._distributions import METHOD
from loraxs_search.search_space._document import (
    Document,
    Faults,
    KeyLocation,
    KeyPath,
    as_mapping,
    dotted,
    forget,
    location_of,
    parse_document,
    parse_value,
    shown,
)
from loraxs_search.search_space._parameter_specs import SpaceSpecs

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
    if not wanted or not set(wanted) < set(earlier) or not set(wanted) <= METHODS.importable().keys():
        return
    if isinstance(section, dict):
        _narrow_parameters(document, section, earlier, wanted)
    if isinstance(promotion.get("methods"), list):
        left = [name for name in promotion["methods"] if name in wanted or name not in earlier]
        promotion["methods"] = left or promotion["methods"]  # none of them left is a fault: all would be candidates


def _narrow_parameters(
    document: Document, section: dict[str, Any], earlier: Sequence[str], wanted: Sequence[str]
) -> None:
    installed = METHODS.importable()
    known, kept = SpaceSpecs([name for name in earlier if name in installed]), SpaceSpecs(wanted)
    gone = {name for name in section if known.takers(name) and not kept.takers(name)}
    for name, given in list(section.items()):
        takers = kept.takers(name)
        if name in gone:
            if not location_of(document.locations, (_PARAMETERS, name)).is_override:  # reported as a fault later
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
        return [form["else"]] if "else" in form else []
    others = {name: wanted for name, wanted in when.items() if name != METHOD}
    if set(fitting) < set(takers):
        return [{**form, "when": {**others, METHOD: fitting}}]
    if others:
        return [{**form, "when": others}]
    return [{key: value for key, value in form.items() if key not in ("when", "else")}]


def _taken(form: object, left: Sequence[str]) -> Sequence[str]:
    """Return the methods of which every trial has this form."""
    when = as_mapping(form).get("when", {})
    return when.get(METHOD, left) if isinstance(when, dict) and when.keys() <= {METHOD} else ()


def _move_lines(document: Document, path: KeyPath, kept: Sequence[int]) -> None:
    """Keep the lines of some items of a list at their new places."""
    new_index: dict[str | int, int] = {old: new for new, old in enumerate(kept)}
    tables: tuple[dict[KeyPath, Any], ...] = (document.locations, document.written)
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

_SHORTHANDS = {"task": "use", "base_model": "id"}  # `task: sst2` is `task: {use: sst2}`


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
        location = KeyLocation.of_override(index, override)
        path, equals, text = override.partition("=")
        keys = tuple(path.strip().split("."))
        if not equals or not all(keys):
            document.faults.add((), f"must be path.to.key=value, but got {shown(override)}.", location)
        elif isinstance(document.data, dict):
            _put(document, keys, text, location)
    if as_mapping(document.data).get(METHOD) != methods:
        _select_methods(document, methods)


def _put(document: Document, keys: tuple[str, ...], text: str, location: KeyLocation) -> None:
    parent: dict[str, Any] = document.data
    for depth, key in enumerate(keys[:-1], start=1):
        inner = parent.setdefault(key, {})
        if depth == 1 and isinstance(inner, str) and key in _SHORTHANDS:
            inner = parent[key] = {_SHORTHANDS[key]: inner}
        if not isinstance(inner, dict):
            message = f"must lead through keys, but {'.'.join(keys[:depth])} holds {shown(inner)}."
            document.faults.add(keys, message, location)
            return
        document.locations.setdefault(keys[:depth], location)
        parent = inner
    forget(document, keys)
    document.locations[keys] = location
    parent[keys[-1]] = parse_value(document, text, keys, location)


_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Retired:
    """What to do instead of naming something that is gone.

    Args:
        remedy: What the user should do, an imperative.
        decides_trials: Whether a search with it trains other trials than one without it. If not, a stored study goes
            on without it.
        in_stored: Whether a stored study continues with it, as it always was.
    """

    remedy: str
    decides_trials: bool = True
    in_stored: bool = False


KEYS: dict[KeyPath, _Retired] = {
    ("warm_start",): _Retired(
        "leave `warm_start` out; `loraxs-search add STUDY --set NAME=VALUE` gives a trial its params"
    ),
    ("promotion", "notify"): _Retired(
        "leave `promotion.notify` out; an MLflow webhook for `model_version_alias.created` tells of promotions",
        decides_trials=False,
    ),
    ("promotion", "max_latency"): _Retired(
        "leave `promotion.max_latency` out; a merged adapter (`loraxs-search pull TASK --format merged`) takes no time",
        decides_trials=False,
    ),
}
RENAMED: dict[KeyPath, str] = {("search", "keep"): "checkpoint"}
VALUES: dict[str, dict[str, _Retired]] = {  # of a parameter
    "basis": {
        "gradient": _Retired("use `basis: top`, which scores as well"),
        "random": _Retired("use `basis: gaussian`, which draws new A and B for each seed", in_stored=True),
    },
    METHOD: dict.fromkeys(GONE, _Retired("use `method: lora-xs`, or lora, vera, ia3, tinylora or unilora")),
}


def retired_value(parameter: str, value: object) -> _Retired | None:
    """Return what is to be known of a parameter's value that is gone from stored studies too; None for any other."""
    gone = VALUES.get(parameter, {}).get(str(value))
    return None if gone is None or gone.in_stored else gone


def refuse_retired(document: Document) -> None:
    """Refuse a space that names what is gone, before anything else is said of it.

    Raises:
        SpaceError: it does; the hint says what to do instead.
    """
    faults, remedies = Faults(), list[str]()
    for path, got, retired in _found(document.data):
        faults.add(path, f"must be left out: this version no longer supports {got or 'it'}.")
        remedies.append(retired.remedy)
    for section, path, new in _renamed(document.data):
        faults.add(path, f"must be called `{new}`.")
        remedies.append(f"write `{dotted((*path[:-1], new))}: {shown(section[path[-1]])}`")
    if faults:
        faults.fail(document.source, document.locations, hint="\n".join(dict.fromkeys(remedies)))


def without_retired(document: Document, study: str) -> None:
    """Take out of a stored study's space what is gone and decides no trial, with a warning; rename what is renamed.

    Raises:
        StudyError: it names what the search cannot continue without.
    """
    found = [each for each in _found(document.data) if not each[2].in_stored]
    needed = [
        (f"{dotted(path)} {got}".strip(), retired.remedy) for path, got, retired in found if retired.decides_trials
    ]
    if needed:
        names, remedies = zip(*needed, strict=True)
        raise StudyError(
            f"Study {study!r} must name only what this version can search, but got {', '.join(names)}.",
            hint="; ".join(dict.fromkeys(remedies)) + ", and launch a new study; or resume it with the version that"
            " launched it. `status`, `report` and `promote` work here, too",
        )
    for path, _, _ in found:
        _logger.warning("study %s: `%s` is ignored: this version no longer supports it", study, dotted(path))
        section = document.data if len(path) == 1 else document.data[path[0]]
        del section[path[-1]]
    for section, path, new in _renamed(document.data):
        section[new] = section.pop(path[-1])
    for section, key in list(_overruled(document.data)):
        del section[key]


def warn_of_retired(text: str, study: str) -> None:
    """Warn of keys in a stored study's space that promotion now ignores."""
    for path, _, retired in _found(parse_document(text, "space.yaml").data):
        if not retired.decides_trials:
            _logger.warning("study %s: `%s` is ignored: this version no longer supports it", study, dotted(path))


def _found(data: object) -> Iterator[tuple[KeyPath, str, _Retired]]:
    """Yield what a space names that is gone: where, the value as a message shows it, and what to do."""
    sections = as_mapping(data)
    for path, retired in KEYS.items():
        section = sections if len(path) == 1 else as_mapping(sections.get(path[0]))
        if path[-1] in section:
            says_something = section[path[-1]] is not None
            yield path, "", retired if says_something else replace(retired, decides_trials=False)
    for root in (METHOD, "parameters"):
        for path, value in _scalars(sections.get(root), (root,)):
            if (gone := VALUES.get(_parameter_of(path), {}).get(str(value))) is not None:
                yield path, shown(value), gone


def _overruled(data: object) -> Iterator[tuple[dict[Any, Any], str]]:
    """Yield what is refused now and was taken, though a study goes by its record of the task: a section and a key."""
    task, promotion = (as_mapping(as_mapping(data).get(name)) for name in ("task", "promotion"))
    for section in (task, promotion):
        if "direction" in section:
            yield section, "direction"
    source = as_mapping(task.get("data"))
    for split in ("validation", "test"):
        for named in (source.get("data_files"), source.get("splits")):
            if source.get(split) is not None and isinstance(named, dict) and split in named:
                yield named, split


def _renamed(data: object) -> Iterator[tuple[dict[Any, Any], KeyPath, str]]:
    """Yield the sections with a key that has another name now, where it is, and that name."""
    for path, new in RENAMED.items():
        section = as_mapping(as_mapping(data).get(path[0]))
        if path[-1] in section:
            yield section, path, new


def _scalars(value: object, path: KeyPath) -> Iterator[tuple[KeyPath, object]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _scalars(inner, (*path, key))
    else:
        yield path, value


def _parameter_of(path: KeyPath) -> str:
    """Return the parameter whose value stands at a path: its own, or that of a condition."""
    if "when" in path[:-1]:
        return str(path[path.index("when") + 1])
    return str(path[1] if path[0] == "parameters" and len(path) > 1 else path[0])
