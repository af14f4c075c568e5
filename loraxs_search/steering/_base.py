"""The contract of a verb: what people can ask of a running search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from loraxs_search.errors import CommandError, did_you_mean, one_of, shortened
from loraxs_search.records import Command, Scalar, TrialState
from loraxs_search.steering.state import SteeredStudy, SteeringState

_MAX_SHOWN = 10  # trials in a message
Trials = Literal["none", "any", "one", "some"]  # `any`: none stands for the whole study


@dataclass(frozen=True)
class Accepted:
    """A verb carries a command out.

    Args:
        text: What happens now, as shown to users.
        facts: What was decided, beside the command itself; `apply` gets them again whenever the journal is replayed.
    """

    text: str
    facts: Mapping[str, Scalar] = field(default_factory=dict)


class Verb(ABC):
    """One thing that can be asked of a running search.

    A command is carried out in two parts. `check` decides, from the study alone, and changes nothing. The driver
    journals its answer, which makes the command done, once and for good. `apply` then makes the effect part of the
    `SteeringState`, from command and facts alone: also in every later driver, as it replays the journal. So it reads
    no clock, no file, and never fails. The search follows the state: `StudySearcher.apply_commands`, whenever it has
    changed.

    An entry is a class in `verbs.py`, and a name in `VERBS` of `steering/__init__.py`.

    Args:
        name: What people type.
        trials: Which trials it takes: none; any number, where none is the whole study; one; one or more.
        after_training: Whether it may come when the study has no more to train.
    """

    name: ClassVar[str]
    trials: ClassVar[Trials] = "none"
    after_training: ClassVar[bool] = False

    @abstractmethod
    def check(self, command: Command, study: SteeredStudy) -> Accepted:
        """Decide on a command, whose trials are known to be the study's.

        Raises:
            CommandError: it cannot be carried out; the message has the law, the value and the place.
        """

    @abstractmethod
    def apply(self, command: Command, facts: Mapping[str, Scalar], state: SteeringState) -> None:
        """Make the effect of an accepted command part of the state."""


def check_trials(verb: Verb, command: Command, study: SteeredStudy) -> None:
    """Refuse trials that are not the study's, and too many or too few.

    Raises:
        CommandError: they are.
    """
    given = command.trial_ids
    wrong = {"none": bool(given), "any": False, "one": len(given) != 1, "some": not given}[verb.trials]
    if wrong:
        wanted = {"none": "no trial", "one": "one trial", "some": "one trial or more"}[verb.trials]
        raise CommandError(
            f"`{verb.name}` must name {wanted} of study {study.name!r}, but got {', '.join(given) or 'none'}.",
            hint=f"see `loraxs-search {verb.name} --help`",
        )
    for trial_id in given:
        if trial_id not in study.records:
            known = one_of(list(study.records), trial_id).split(", ")
            shown = ", ".join(known[:_MAX_SHOWN]) + (", ..." if len(known) > _MAX_SHOWN else "")
            raise CommandError(
                f"{did_you_mean(trial_id, study.records)}`trial` must be one of study {study.name!r}: "
                f"{shown or 'none yet'}, but got {shortened(trial_id)}.",
                hint=f"`loraxs-search status {study.name}` lists them",
            )


def check_unended(command: Command, study: SteeredStudy) -> None:
    """Refuse trials that have ended.

    Raises:
        CommandError: one has.
    """
    for trial_id in command.trial_ids:
        record = study.records[trial_id]
        if record.state is not TrialState.RUNNING:
            why = f": {record.reason}" if record.reason else ""
            raise CommandError(
                f"Trial {trial_id} of study {study.name!r} has already ended, {record.state.value}{why}.",
                hint=f"`loraxs-search status {study.name}` shows how each trial stands",
            )


def check_unstopped(command: Command, study: SteeredStudy) -> None:
    """Refuse trials that a user has stopped, and any where the study is to finish.

    Raises:
        CommandError: an earlier command says the contrary.
    """
    for trial_id in command.trial_ids:
        if trial_id in study.state.stopping:
            raise CommandError(
                f"Trial {trial_id} of study {study.name!r} is about to end: {study.state.stopping[trial_id]}.",
                hint="a stopped trial ends at its next report",
            )
    if study.state.finishing is not None:
        raise CommandError(
            f"Study {study.name!r} is about to end: {study.state.finishing}.",
            hint="its running trials train to their ends; `stop` ends one earlier",
        )
