"""Carries commands of people into a running search, each once, whatever is killed when."""

from __future__ import annotations

import time
from collections.abc import Callable

from loraxs_search.log.events import Answered, Commanded, Steered
from loraxs_search.records.search import AnswerState, Command
from loraxs_search.steering import apply, decide, describe, steered
from loraxs_search.steering.state import SteeredStudy, SteeringState
from loraxs_search.studies.folder import StudyFolder

_EVERY_S = 0.2  # between two looks


class Commander:
    """Takes commands from the study's inbox, decides, and has the search follow the resulting state.

    The order of what is written is what makes each command count once. A command is in the journal before anything is
    decided, its answer before anything follows, and only then it leaves the inbox. A driver that is killed in between
    leaves an open command, which the next one decides on, or one in the inbox whose id the journal knows.

    Args:
        say: Called with each answer, and with why the search ends without new trials.
        apply_commands: Called when the state has changed: the search acts by it.
    """

    def __init__(
        self,
        study: SteeredStudy,
        say: Callable[[Steered], None] = lambda _: None,
        apply_commands: Callable[[], None] = lambda: None,
    ) -> None:
        self._study, self._say, self._apply_commands = study, say, apply_commands
        self._inbox = study.folder.inbox()
        self._next_look = 0.0

    def on_loop_step(self) -> None:
        """Take what people have sent since the last look, if it is time to look again."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _EVERY_S
            self.take_all()

    def take_all(self) -> None:
        """Take whatever waits, left open by an earlier driver first.

        Raises:
            HomeError: the journal cannot be written; nothing has followed from a command that it does not have.
        """
        has_answered = False
        for record in list(self._study.journal.commands.values()):
            has_answered = self._answer(record.command) or has_answered
        for command in self._inbox.waiting(set_aside=True):
            self._study.journal.append(Commanded(command=command))
            has_answered = self._answer(command) or has_answered
            self._inbox.remove(command.command_id)
        if has_answered:
            self._apply_commands()

    def _answer(self, command: Command) -> bool:
        """Decide on a command that has no answer; return whether it had none."""
        if self._study.journal.commands[command.command_id].answer is not None:
            return False
        answer = decide(command, self._study)
        self._study.journal.append(Answered(answer=answer))
        apply(command, answer, self._study.state)
        said = f"refused: {answer.text}" if answer.state is AnswerState.REFUSED else answer.text
        self._say(Steered(text=f"{describe(command)}: {said}", finishing=self._study.state.finishing or ""))
        return True


def answer_waiting(folder: StudyFolder) -> None:
    """Answer what people have sent to a study that is not searched any further; its lock is held."""
    Commander(steered(folder, folder.journal())).take_all()


def asks_for_more(folder: StudyFolder, state: SteeringState) -> bool:
    """Whether people have asked a study for more since its trials had ended, or it is continuing for that already."""
    journal = folder.journal()
    return journal.is_reopened or state.num_reopenings > journal.num_reopenings
