"""Words that stand in tags of the study's MLflow runs, read and answered by a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Iterable

from loraxs_search.mlflow_uri import redact
from loraxs_search.records import Command, CommandAnswer
from loraxs_search.tracking.command_tags import CommandTags, TaggedWord

_logger = logging.getLogger(__name__)
_EVERY_S, _LONGEST_S, _LAST_S = 2.0, 15.0, 5.0
_SENT_BY = "somebody in MLflow"


class TagSource:
    """A `CommandSource`. A store that is away is asked again later, and never disturbs the search.

    A driver that is killed once it has taken a word off its run may leave it unanswered. It carries none out twice. An
    answer that cannot be written is lost to MLflow alone: the journal has it.
    """

    def __init__(self, tags: CommandTags) -> None:
        self._tags = tags
        self._commands = queue.SimpleQueue[Command]()  # taken off their runs
        self._answers = queue.SimpleQueue[tuple[TaggedWord, str]]()  # to be written
        self._taken: dict[str, TaggedWord] = {}  # by the id of the command
        self._looked = threading.Condition()
        self._num_looks = 0
        self._wake, self._closing = threading.Event(), threading.Event()
        self._is_away = False
        self._thread = threading.Thread(target=self._work, name="command-tags", daemon=True)
        self._thread.start()

    # ---- the driver's side -------------------------------------------------------------------------------------------
    def waiting(self) -> Iterable[Command]:
        """Yield the commands that were taken off their runs since the last call."""
        while not self._commands.empty():
            yield self._commands.get()

    def answered(self, command: Command, answer: CommandAnswer) -> None:
        """Have the answer written."""
        hint = f" ({answer.hint})" if answer.hint else ""
        self._answers.put((self._taken.pop(command.command_id), f"{answer.state.value}: {answer.text}{hint}"))

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
        try:
            self._write_answers()
            for tagged in self._tags.take():
                self._take(tagged)
        except Exception as error:  # noqa: BLE001  # whatever MLflow and the network raise
            if not self._is_away:
                _logger.info("commands in MLflow cannot be read for now: %s", redact(str(error)))
            self._is_away = True
            return False
        self._is_away = False
        return True

    def _take(self, tagged: TaggedWord) -> None:
        if tagged.fault:
            self._answers.put((tagged, f"refused: {tagged.fault}"))
            self._write_answers()
            return
        trials = (tagged.trial_id,) if tagged.trial_id else ()
        command = Command(uuid.uuid4().hex, tagged.word, trials, sent_by=_SENT_BY, issued_at=time.time())
        self._taken[command.command_id] = tagged
        self._commands.put(command)

    def _write_answers(self) -> None:
        while not self._answers.empty():
            tagged, text = self._answers.get()
            try:
                self._tags.answer(tagged.run_id, f"{tagged.word}: {text}")
            except Exception as error:  # noqa: BLE001  # of the store that is away, or of a run that is deleted
                _logger.info("a command in MLflow cannot be answered: %s", redact(str(error)))
