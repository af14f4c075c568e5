"""Commands that stand in tags of the study's MLflow runs, read and answered by a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from loraxs_search.mlflow_uri import redact
from loraxs_search.records import Command, CommandAnswer
from loraxs_search.steering.text import parse
from loraxs_search.studies import Journal
from loraxs_search.tracking.command_tags import CommandTags, TaggedCommand

_logger = logging.getLogger(__name__)
_EVERY_S, _LONGEST_S, _LAST_S = 2.0, 15.0, 5.0
_SENT_BY = "somebody in MLflow"
_MOST_FAILURES = 5  # of an answer that cannot be written: its run was deleted


class TagSource:
    """A `CommandSource`. A store that is away is asked again later, and never disturbs the search.

    What people type has no id. A tag is the command that the journal has with this run, key and value until that one
    is cleared: its tag is deleted, and the journal knows. So after a kill anywhere the same tag is the same command.
    Of somebody who typed the same words again just as the driver was killed, once is heard.

    The thread writes answers and deletes tags, then reads, and hands over both together: what it hands over never holds
    a tag that it has deleted.
    """

    def __init__(self, tags: CommandTags, journal: Journal) -> None:
        self._tags, self._journal = tags, journal
        self._lock = threading.Condition()
        self._num_looks = 0
        self._wake = threading.Event()
        self._read: list[TaggedCommand] | None = None  # what the latest look found, until it is handed over
        self._answers: dict[str, tuple[Command, CommandAnswer]] = {}  # to be written
        self._deleted: list[str] = []  # ids of commands whose tags are gone, until it is journalled
        self._answering: set[str] = set()
        self._failures: Counter[str] = Counter()  # of answers, while the store could be read
        self._earlier = {  # of earlier drivers, with tags that may be there still
            record.command.command_id
            for record in journal.commands.values()
            if record.command.tag is not None and not record.is_cleared
        }
        self._closing = threading.Event()
        self._is_away = False
        self._thread = threading.Thread(target=self._work, name="command-tags", daemon=True)
        self._thread.start()

    # ---- the driver's side -------------------------------------------------------------------------------------------
    def waiting(self) -> Iterable[Command]:
        """Return the commands of the latest look, each with its id; journals which tags are gone."""
        with self._lock:
            read, self._read = self._read, None
            deleted, self._deleted = self._deleted, []
        for command_id in deleted:
            self._journal.command_cleared(command_id)
            self._answering.discard(command_id)
        if read is None:
            return []
        commands = [as_command(tagged, self._journal) for tagged in read]
        for command_id in self._earlier - {command.command_id for command in commands}:
            self._journal.command_cleared(command_id)  # deleted by a driver that was killed before it could say so
        self._earlier.clear()
        return commands

    def answered(self, command: Command, answer: CommandAnswer) -> None:
        """Have the answer written and the tag deleted, once."""
        if command.command_id not in self._answering:
            self._answering.add(command.command_id)
            with self._lock:
                self._answers[command.command_id] = (command, answer)

    def settle(self) -> None:
        """Wait until answers so far are written and tags read; seconds at most, not at all for a store that is away.

        One look may have begun before; two that end after this cannot both.
        """
        for _ in range(2):
            with self._lock:
                before = self._num_looks
                self._wake.set()
                self._lock.wait_for(lambda before=before: self._num_looks > before, _LAST_S)  # type: ignore[misc]
                if self._is_away:
                    return

    def close(self) -> None:
        """End the thread; what is not written is left to the next driver."""
        self._closing.set()
        self._wake.set()
        self._thread.join(_LAST_S)
        self.waiting()

    # ---- the thread's side -------------------------------------------------------------------------------------------
    def _work(self) -> None:
        pause_s = _EVERY_S
        while not self._closing.is_set():
            self._wake.clear()
            pause_s = _EVERY_S if self._look() else min(2 * pause_s, _LONGEST_S)
            with self._lock:
                self._num_looks += 1
                self._lock.notify_all()
            self._wake.wait(pause_s)

    def _look(self) -> bool:
        """Write what is to be written, then read; return whether the store took part."""
        deleted = list[str]()
        try:
            failed = self._write_answers(deleted)
            read = self._tags.read()
            if failed is not None:
                self._failed(failed, deleted)
        except Exception as error:  # noqa: BLE001  # whatever MLflow and the network raise
            self._hand_over(deleted, None)
            if not self._is_away:
                _logger.info("commands in MLflow cannot be read for now: %s", redact(str(error)))
            self._is_away = True
            return False
        self._hand_over(deleted, read)
        self._is_away = False
        return True

    def _write_answers(self, deleted: list[str]) -> str | None:
        """Write answers and delete their tags, to the first that fails; return its command."""
        with self._lock:
            answers = list(self._answers.values())
        for command, answer in answers:
            assert command.tag is not None
            try:
                self._tags.answer(command.tag, answer)
            except Exception as error:  # noqa: BLE001  # of the store that is away, or of a run that is deleted
                _logger.info("a command in MLflow cannot be answered: %s", redact(str(error)))
                return command.command_id
            deleted.append(command.command_id)
        return None

    def _failed(self, command_id: str, deleted: list[str]) -> None:
        """Let others go first, of a store that answers; in the end nobody is left to be answered."""
        self._failures[command_id] += 1
        if self._failures[command_id] >= _MOST_FAILURES:
            deleted.append(command_id)
            return
        with self._lock:
            self._answers[command_id] = self._answers.pop(command_id)

    def _hand_over(self, deleted: list[str], read: list[TaggedCommand] | None) -> None:
        with self._lock:
            for command_id in deleted:
                self._answers.pop(command_id, None)
            self._deleted += deleted
            if read is not None:
                self._read = read
            elif deleted:
                self._read = None  # it may hold a tag that is deleted


def waiting_in_tags(tags: CommandTags, journal: Journal) -> list[Command]:
    """Return the commands that stand in tags of a study that nobody searches; none where the store is away."""
    try:
        read = tags.read()
    except Exception as error:  # noqa: BLE001  # whatever MLflow and the network raise
        _logger.info("commands in MLflow cannot be read for now: %s", redact(str(error)))
        return []
    return [as_command(tagged, journal) for tagged in read]


def as_command(tagged: TaggedCommand, journal: Journal) -> Command:
    """Return the command that a tag is: one that the journal has already, sent by a machine, or typed by somebody."""
    for record in journal.commands.values():
        if record.command.tag == tagged.tag and not record.is_cleared:
            return record.command
    if tagged.sent is not None:
        return replace(tagged.sent, tag=tagged.tag)
    command = parse(tagged.tag.value, uuid.uuid4().hex, tagged.trial_id)
    return replace(command, sent_by=_SENT_BY, issued_at=time.time(), tag=tagged.tag)
