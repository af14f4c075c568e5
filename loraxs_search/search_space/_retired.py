"""What spaces of earlier versions may name that is gone: a new space is refused, a stored study stays readable."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from loraxs_search.errors import StudyError
from loraxs_search.methods import GONE
from loraxs_search.search_space._distributions import METHOD
from loraxs_search.search_space._document import Document, Faults, KeyPath, dotted, parse_document, shown

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Retired:
    """What to do instead of naming something that is gone.

    Args:
        remedy: For people, an imperative.
        decides_trials: Whether a search with it trains other trials than one without it. If not, a stored study goes
            on without it.
        in_stored: Whether a stored study goes on with it, as it always was.
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
VALUES: dict[str, dict[str, _Retired]] = {  # of a parameter
    "basis": {
        "gradient": _Retired("use `basis: top`, which scores as well"),
        "random": _Retired("use `basis: gaussian`, which draws A and B anew for each seed", in_stored=True),
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
    if faults:
        faults.fail(document.source, document.locations, hint="\n".join(dict.fromkeys(remedies)))


def without_retired(document: Document, study: str) -> None:
    """Take out of a stored study's space what is gone and decides no trial, with a warning.

    Raises:
        StudyError: it names what the search cannot go on without.
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


def warn_of_retired(text: str, study: str) -> None:
    """Warn of keys in a stored study's space that a promotion does not heed any more."""
    for path, _, retired in _found(parse_document(text, "space.yaml").data):
        if not retired.decides_trials:
            _logger.warning("study %s: `%s` is ignored: this version no longer supports it", study, dotted(path))


def _found(data: object) -> Iterator[tuple[KeyPath, str, _Retired]]:
    """Yield what a space names that is gone: where, the value as a message shows it, and what to do."""
    sections = data if isinstance(data, dict) else {}
    for path, retired in KEYS.items():
        section = sections if len(path) == 1 else sections.get(path[0])
        if isinstance(section, dict) and path[-1] in section:
            says_something = section[path[-1]] is not None
            yield path, "", retired if says_something else replace(retired, decides_trials=False)
    for root in (METHOD, "parameters"):
        for path, value in _scalars(sections.get(root), (root,)):
            if (gone := VALUES.get(_parameter_of(path), {}).get(str(value))) is not None:
                yield path, shown(value), gone


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
