"""Carries commands of people into a running search, each once, whatever is killed when."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from loraxs_search.records import AnswerState, Command, CommandAnswer, SteeringStatus
from loraxs_search.search.driver.tag_source import TagSource
from loraxs_search.steering import SteeredStudy, SteeringState, apply, decide, describe, steered
from loraxs_search.studies import CommandInbox, StudyFolder
from loraxs_search.tracking._followed import recorded_id
from loraxs_search.tracking.command_tags import CommandTags

_EVERY_S = 0.2  # between two looks at what people have sent
Said = Callable[[str, SteeringStatus], None]


class CommandSource(Protocol):
    """Where commands come from; every call returns at once."""

    def waiting(self) -> Iterable[Command]:
        """Yield those that are not answered yet, or of which that is not known."""
        ...

    def answered(self, command: Command, answer: CommandAnswer) -> None:
        """Pass an answer on, and take the command away; may come again after a restart."""
        ...


class InboxSource:
    """Commands of people on this machine, through the study folder; they read the answer in its journal."""

    def __init__(self, inbox: CommandInbox) -> None:
        self._inbox = inbox

    def waiting(self) -> Iterable[Command]:
        return self._inbox.waiting(set_aside=True)

    def answered(self, command: Command, answer: CommandAnswer) -> None:
        self._inbox.remove(command.command_id)


@contextlib.contextmanager
def commands(
    study: SteeredStudy, tracking_uri: str, say: Said, follow: Callable[[], None], *, goes_on: bool = False
) -> Iterator[Commander]:
    """Yield the commander of a study, which hears the people on this machine and those who may write to MLflow.

    Where the search comes to its end, whatever waits then is answered.

    Args:
        goes_on: Whether an earlier driver has worked on the study: see `TagSource`.
    """
    folder = study.folder
    tags = CommandTags(tracking_uri, recorded_id(folder.path), folder.info.task.registered_name)
    with contextlib.closing(TagSource(tags, goes_on=goes_on)) as tag_source:
        commander = Commander(study, [InboxSource(folder.inbox()), tag_source], say, follow)
        yield commander
        tag_source.settle()  # a search may end before it has looked once
        commander.take_all()
        tag_source.settle()


class Commander:
    """Takes commands, decides, and has the search follow the state that they come to.

    The order of what is written is what makes each command count once. A command is in the journal before anything is
    decided, its answer before anything follows, and only then its source forgets it. A driver that is killed in between
    leaves an open command, which the next one decides on, or a source that speaks again of an id that the journal
    knows.

    Args:
        say: Called with each answer, and with what commands have come to.
        follow: Called when the state has changed: the search acts by it.
    """

    def __init__(
        self, study: SteeredStudy, sources: Iterable[CommandSource], say: Said, follow: Callable[[], None]
    ) -> None:
        self._study, self._sources, self._say, self._follow = study, tuple(sources), say, follow
        self._next_look = 0.0

    def turn(self) -> None:
        """Take what people have sent since the last look, if it is time to look again."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _EVERY_S
            self.take_all()

    def take_all(self) -> None:
        """Take whatever waits, left open by an earlier driver first.

        Raises:
            HomeError: the journal cannot be written; nothing has followed from a command that it does not have.
        """
        answered = False
        for record in list(self._study.journal.commands.values()):
            if record.answer is None:
                answered = self._answer(record.command) or answered
        for source in self._sources:
            for command in list(source.waiting()):
                self._study.journal.commanded(command)
                answered = self._answer(command) or answered
                answer = self._study.journal.commands[command.command_id].answer
                assert answer is not None
                source.answered(command, answer)
        if answered:
            self._follow()

    def _answer(self, command: Command) -> bool:
        """Decide on a command that has no answer; return whether it had none."""
        journal = self._study.journal
        if journal.commands[command.command_id].answer is not None:
            return False
        answer = decide(command, self._study)
        journal.answered(answer)
        apply(command, answer, self._study.state)
        self._say(_line(command, answer), self._study.state.status)
        return True


def answer_waiting(folder: StudyFolder, tracking_uri: str) -> None:
    """Answer what people have sent to a study that is not searched any further; its lock is held."""
    study = steered(folder, folder.journal())
    with commands(study, tracking_uri, lambda *_: None, lambda: None):
        pass  # at its end it answers all that waits


def asks_for_more(folder: StudyFolder, state: SteeringState) -> bool:
    """Whether people have asked a study for more since its trials had ended, or it is going on for that already."""
    journal = folder.journal()
    return journal.is_reopened or state.num_reopenings > journal.num_reopenings


def _line(command: Command, answer: CommandAnswer) -> str:
    said = f"refused: {answer.text}" if answer.state is AnswerState.REFUSED else answer.text
    return f"{describe(command)}: {said}"
