"""Carries commands of people into a running search, each once, whatever is killed when.

They come from the study's folder, and from tags of its MLflow runs, which their own thread reads and answers.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from loraxs_search.mlflow_uri import redact
from loraxs_search.records import AnswerState, Command, CommandAnswer, SteeringStatus
from loraxs_search.steering import SteeredStudy, SteeringState, apply, decide, describe, steered
from loraxs_search.studies import CommandInbox, StudyFolder
from loraxs_search.tracking.command_tags import CommandTags, TaggedWord
from loraxs_search.tracking.followed import recorded_id

_logger = logging.getLogger(__name__)
_TAGS_EVERY_S, _LONGEST_S, _LAST_S = 2.0, 15.0, 5.0
_SENT_BY = "a user in MLflow"


class TagSource:
    """A `_CommandSource`. A store that is away is asked again later, and never disturbs the search.

    A word stays in its tag, claimed by the id of its command, until the journal has the answer: a driver that is killed
    before that leaves it to the next one. An answer that cannot be written is lost to MLflow alone.

    A word means the search that runs when it is written. Those that nobody has claimed when a driver continues with a
    study were written while none ran: they are refused, since who wrote them may have given up on them long ago.

    Args:
        goes_on: Whether an earlier driver has worked on the study.
    """

    def __init__(self, tags: CommandTags, *, goes_on: bool) -> None:
        self._tags, self._refuses_unclaimed = tags, goes_on
        self._commands = queue.SimpleQueue[Command]()  # claimed
        self._answers = queue.SimpleQueue[tuple[TaggedWord, str]]()  # to be written
        self._taken: dict[str, TaggedWord] = {}  # by the id of the command
        self._answered: dict[str, str] = {}  # the same, while a tag may still stand
        self._looked = threading.Condition()
        self._num_looks = 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._is_away = False
        self._thread = threading.Thread(target=self._work, name="command-tags", daemon=True)
        self._thread.start()

    # ---- the driver's side -------------------------------------------------------------------------------------------
    def waiting(self) -> Iterable[Command]:
        """Yield the commands whose words were claimed since the last call."""
        while not self._commands.empty():
            yield self._commands.get()

    def answered(self, command: Command, answer: CommandAnswer) -> None:
        """Have the answer written."""
        hint = f" ({answer.hint})" if answer.hint else ""
        text = self._answered[command.command_id] = f"{answer.state.value}: {answer.text}{hint}"
        self._answers.put((self._taken.pop(command.command_id), text))

    def settle(self) -> None:
        """Wait until answers so far are written and tags read; seconds at most, not at all for a store that is away.

        One look may have begun before; two that end after this cannot both.
        """
        for _ in range(2):
            with self._looked:
                before = self._num_looks
                self._wake.set()
                self._looked.wait_for(lambda before=before: self._num_looks > before, _LAST_S)  # type: ignore[misc]
                if self._is_away:
                    return

    def close(self) -> None:
        """End the thread; what is not written is lost."""
        self._closing.set()
        self._wake.set()
        self._thread.join(_LAST_S)

    # ---- the thread's side -------------------------------------------------------------------------------------------
    def _work(self) -> None:
        pause_s = _TAGS_EVERY_S
        while not self._closing.is_set():
            self._wake.clear()
            pause_s = _TAGS_EVERY_S if self._look() else min(2 * pause_s, _LONGEST_S)
            with self._looked:
                self._num_looks += 1
                self._looked.notify_all()
            self._wake.wait(pause_s)

    def _look(self) -> bool:
        """Write answers, then take words; return whether the store took part."""
        self._write_answers()
        try:
            for tagged in self._tags.standing():
                self._take(tagged)
        except Exception as error:  # noqa: BLE001  # whatever MLflow and the network raise
            if not self._is_away:
                _logger.info("commands in MLflow cannot be read for now: %s", redact(str(error)))
            self._is_away = True
            return False
        self._is_away, self._refuses_unclaimed = False, False
        return True

    def _take(self, tagged: TaggedWord) -> None:
        """Take a word, or refuse it; one whose tag cannot be written keeps no other waiting."""
        if tagged.command_id in self._taken:
            return
        if text := self._answered.get(tagged.command_id) or self._refusal(tagged):
            self._answers.put((tagged, text))
            self._write_answers()
            return
        try:
            tagged = tagged if tagged.command_id else self._tags.claim(tagged)
        except Exception as error:  # noqa: BLE001  # of the store that is away, or of a run that is deleted
            _logger.info("a command in MLflow cannot be taken: %s", redact(str(error)))
            return
        trials = (tagged.trial_id,) if tagged.trial_id else ()
        self._taken[tagged.command_id] = tagged
        self._commands.put(Command(tagged.command_id, tagged.word, trials, sent_by=_SENT_BY, issued_at=time.time()))

    def _refusal(self, tagged: TaggedWord) -> str:
        """Return why a word is no command; empty where it is one."""
        if tagged.fault:
            return f"refused: {tagged.fault}"
        if self._refuses_unclaimed and not tagged.command_id:
            return "refused: it was written while no search ran; write it again, and the one that runs now takes it"
        return ""

    def _write_answers(self) -> None:
        while not self._answers.empty():
            tagged, text = self._answers.get()
            try:
                self._tags.answer(tagged, f"{tagged.word}: {text}")
            except Exception as error:  # noqa: BLE001  # of the store that is away, or of a run that is deleted
                _logger.info("a command in MLflow cannot be answered: %s", redact(str(error)))


_EVERY_S = 0.2  # between two checks for commands
Said = Callable[[str, SteeringStatus], None]


class _CommandSource(Protocol):
    """Where commands come from; every call returns at once."""

    def waiting(self) -> Iterable[Command]:
        """Yield those that are not answered yet, or of which that is not known."""

    def answered(self, command: Command, answer: CommandAnswer) -> None:
        """Pass an answer on, and take the command away; may come again after a restart."""


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
    study: SteeredStudy, tracking_uri: str, say: Said, apply_commands: Callable[[], None], *, goes_on: bool = False
) -> Iterator[Commander]:
    """Yield the commander of a study, which hears the people on this machine and those who may write to MLflow.

    Where the search comes to its end, whatever waits then is answered.

    Args:
        goes_on: Whether an earlier driver has worked on the study: see `TagSource`.
    """
    folder = study.folder
    tags = CommandTags(tracking_uri, recorded_id(folder.path), folder.info.task.registered_name)
    with contextlib.closing(TagSource(tags, goes_on=goes_on)) as tag_source:
        commander = Commander(study, [InboxSource(folder.inbox()), tag_source], say, apply_commands)
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
        apply_commands: Called when the state has changed: the search acts by it.
    """

    def __init__(
        self, study: SteeredStudy, sources: Iterable[_CommandSource], say: Said, apply_commands: Callable[[], None]
    ) -> None:
        self._study, self._sources, self._say, self._apply_commands = study, tuple(sources), say, apply_commands
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
            self._apply_commands()

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
    """Whether people have asked a study for more since its trials had ended, or it is continuing for that already."""
    journal = folder.journal()
    return journal.is_reopened or state.num_reopenings > journal.num_reopenings


def _line(command: Command, answer: CommandAnswer) -> str:
    said = f"refused: {answer.text}" if answer.state is AnswerState.REFUSED else answer.text
    return f"{describe(command)}: {said}"
