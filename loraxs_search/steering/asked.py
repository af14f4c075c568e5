"""Trials that people ask for: how `add` and `clone` say what they are to be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from loraxs_search.errors import CommandError, SpaceError, StudyError
from loraxs_search.records import Command, Scalar
from loraxs_search.steering._base import SteeredStudy
from loraxs_search.steering.plan import check_time, extended, has_ended
from loraxs_search.steering.state import AskedTrial, SteeringState

if TYPE_CHECKING:
    from loraxs_search.search_space import Space

_PARAM = "params."


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Refuse a command where files of the study that it needs are damaged; the search goes on.

    Raises:
        CommandError: they are.
    """
    try:
        yield
    except (StudyError, SpaceError) as error:
        raise CommandError(error.message, hint=error.hint) from error


def space_of(study: SteeredStudy) -> Space:
    """Return the space that a study searches.

    Raises:
        CommandError: its file is damaged.
    """
    from loraxs_search.studies.stored_space import stored_space

    with readable():
        return stored_space(study.folder)


def refuse(faults: tuple[str, ...], hint: str) -> None:
    """Refuse params, with all that is wrong with them.

    Raises:
        CommandError: something is.
    """
    if faults:
        raise CommandError("\n".join(faults), hint=hint)


def facts_of(study: SteeredStudy, params: Mapping[str, Scalar], **others: Scalar) -> dict[str, Scalar]:
    """Return what a verb decided about a trial: its params, and whether the study begins anew for it."""
    facts = {f"{_PARAM}{name}": value for name, value in params.items()} | others
    return facts | ({"reopens": True} if has_ended(study) else {})


def check_budget(study: SteeredStudy) -> None:
    """Refuse another trial where there is no time to train it.

    Raises:
        CommandError: the study's time budget is used up.
    """
    check_time(study, extended(study.folder.info.search, study.state))


def ask(command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
    """Make a trial part of what is to be proposed."""
    params = {name.removeprefix(_PARAM): value for name, value in facts.items() if name.startswith(_PARAM)}
    source = command.trial_ids[0] if command.trial_ids else ""
    is_hidden = bool(facts.get("is_hidden", False))
    state.asked[command.command_id] = AskedTrial(command.command_id, params, source, is_hidden)
    state.num_reopenings += bool(facts.get("reopens"))
