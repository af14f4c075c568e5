"""What people ask of a running search, and what it answers."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from loraxs_search.records.literals import Scalar


@dataclass(frozen=True)
class Command:
    """One request to a search.

    Args:
        command_id: Chosen by the sender and never used twice: a search carries out each id once.
        verb: A name of `loraxs_search.steering`.
        trial_ids: The trials that it names, without doubles.
        arguments: Options of the verb by name.
        params: Values that `--set` gives, by the names of a trial's params.
        sent_by: Who sent it, as shown to users.
        issued_at: When, seconds since 1970.
    """

    command_id: str
    verb: str
    trial_ids: tuple[str, ...] = ()
    arguments: Mapping[str, Scalar] = field(default_factory=dict)
    params: Mapping[str, Scalar] = field(default_factory=dict)
    sent_by: str = ""
    issued_at: float = 0.0


class AnswerState(enum.StrEnum):
    """What became of a command; `queued` is said by the sender, where no search has answered yet."""

    DONE = "done"
    REFUSED = "refused"
    QUEUED = "queued"


@dataclass(frozen=True)
class CommandAnswer:
    """The answer to a command.

    Args:
        text: Shown to users: what happens now, or why nothing does.
        hint: What to do about a refusal.
        facts: What the verb decided, which its effect is rebuilt from.
    """

    command_id: str
    state: AnswerState
    text: str
    hint: str = ""
    facts: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class CommandRecord:
    """A command that a search has taken, and how it stands.

    Args:
        answer: None until it is answered.
    """

    command: Command
    answer: CommandAnswer | None = None
