"""Steering: what people ask of a running search. All commands together give one state.

The driver journals a command before it decides on it, and its answer, which is its effect, before anything follows.
So after a kill at any moment each command is carried out once, and the state is rebuilt from the journal.
"""

from __future__ import annotations

from collections.abc import Mapping

from loraxs_search.errors import CommandError, HomeError, unknown_name
from loraxs_search.records.command import AnswerState, Command, CommandAnswer
from loraxs_search.records.search import SearchPlan
from loraxs_search.steering.state import SteeredStudy, SteeringState, planned
from loraxs_search.steering.verbs import Add, Extend, Finish, Stop, Verb, check_trials
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.journal import Journal

VERBS: Mapping[str, Verb] = {verb.name: verb for verb in (Stop(), Finish(), Add(), Extend())}


def get_verb(name: str) -> Verb:
    """Return the verb of a name.

    Raises:
        CommandError: the verb is unknown.
    """
    if name not in VERBS:
        raise CommandError(unknown_name("command", name, VERBS), hint="see `loraxs-search --help`")
    return VERBS[name]


def steered(folder: StudyFolder, journal: Journal) -> SteeredStudy:
    """Return a study with the state that the commands in its journal give."""
    state = SteeringState()
    for record in journal.commands.values():
        if record.answer is not None:
            apply(record.command, record.answer, state)
    return SteeredStudy(folder, journal, state)


def whole_plan(folder: StudyFolder, journal: Journal) -> SearchPlan:
    """Return a study's plan as commands have extended it; its `trials` are all that the study will have."""
    return planned(folder.info.search, steered(folder, journal).state, journal.records)


def open_commands(study: SteeredStudy) -> list[Command]:
    """Return the commands that no driver has answered yet, of those that reach the study through its folder."""
    taken = study.journal.commands
    left_open = [record.command for record in taken.values() if record.answer is None]
    return [*left_open, *(each for each in study.folder.inbox().waiting() if each.command_id not in taken)]


def foreseen(folder: StudyFolder) -> SteeredStudy:
    """Return a study as its commands will leave it once those that wait are decided on; nothing is written."""
    study = steered(folder, folder.journal())
    for command in open_commands(study):
        apply(command, decide(command, study), study.state)
    return study


def describe(command: Command) -> str:
    """Return a command in a few words, with who sent it."""
    options = [
        f"--{name}" if value is True else f"--{name} {value}" for name, value in command.arguments.items() if value
    ]
    params = [f"--set {name}={value}" for name, value in command.params.items()]
    who = f" ({command.sent_by})" if command.sent_by else ""
    trials = [f"--from {name}" for name in command.trial_ids] if command.verb == "add" else command.trial_ids
    return " ".join((command.verb, *trials, *options, *params)) + who


def decide(command: Command, study: SteeredStudy) -> CommandAnswer:
    """Return the answer to a command; nothing is changed."""
    try:
        verb = get_verb(command.verb)
        if study.trials_have_ended and not verb.after_training:
            name = study.name
            hint = f"`loraxs-search status {name}` shows them"
            if study.folder.candidates() is None:
                hint = f"refits and scores follow: Ctrl-C interrupts them, `loraxs-search resume {name}` continues"
            raise CommandError(
                f"All trials of study {name!r} have ended, so there is nothing to {verb.name}.", hint=hint
            )
        check_trials(verb, command, study)
        accepted = verb.check(command, study)
    except CommandError as error:
        return CommandAnswer(command.command_id, AnswerState.REFUSED, error.message, error.hint or "")
    except HomeError:
        raise  # the disk, not the command: it is decided on once that is put right
    except Exception as error:  # noqa: BLE001  # what people type must end no search, nor each one that continues with it
        said = f"{type(error).__name__}: {error}"
        return CommandAnswer(command.command_id, AnswerState.REFUSED, f"`{command.verb}` failed: {said}")
    return CommandAnswer(command.command_id, AnswerState.DONE, accepted.text, facts=accepted.facts)


def apply(command: Command, answer: CommandAnswer, state: SteeringState) -> None:
    """Make the effect of an answered command part of the state; a refused command has no effect.

    A verb of a later version, in a journal that it wrote, is passed over.
    """
    if answer.state is AnswerState.DONE and command.verb in VERBS:
        VERBS[command.verb].apply(command, answer.facts, state)
