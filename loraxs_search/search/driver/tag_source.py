"""Words that stand in tags of the study's MLflow runs, read and answered by a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable

from loraxs_search.mlflow_uri import redact
from loraxs_search.records import Command, CommandAnswer
from loraxs_search.tracking.command_tags import CommandTags, TaggedWord

_logger = logging.getLogger(__name__)
_EVERY_S, _LONGEST_S, _LAST_S = 2.0, 15.0, 5.0
_SENT_BY = "somebody in MLflow"


class TagSource:
    """A `CommandSource`. A store that is away is asked again later, and never disturbs the search.

    A word stays in its tag, claimed by the id of its command, until the journal has the answer: a driver that is killed
    before that leaves it to the next one. An answer that cannot be written is lost to MLflow alone.

    A word means the search that runs when it is written. Those that nobody has claimed when a driver goes on with a
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
        pause_s = _EVERY_S
        while not self._closing.is_set():
            self._wake.clear()
            pause_s = _EVERY_S if self._look() else min(2 * pause_s, _LONGEST_S)
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
