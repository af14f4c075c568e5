"""Sends a command to the search of a study on this machine, and waits a little for the answer."""

from __future__ import annotations

import getpass
import platform
import time
import uuid
from collections.abc import Mapping, Sequence

from loraxs_search.errors import CommandError
from loraxs_search.records import AnswerState, Command, CommandAnswer, Scalar
from loraxs_search.steering import decide, steered
from loraxs_search.studies import StudyFolder

WAIT_S = 10.0
_LOOK_EVERY_S = 0.1


def new_command(
    verb: str,
    trial_ids: Sequence[str] = (),
    arguments: Mapping[str, Scalar] | None = None,
    params: Mapping[str, Scalar] | None = None,
) -> Command:
    """Return a command of this user on this machine, with an id of its own."""
    return Command(
        uuid.uuid4().hex,
        verb,
        tuple(dict.fromkeys(trial_ids)),
        dict(arguments or {}),
        dict(params or {}),
        f"{_user()} on {platform.node()}",
        time.time(),
    )


def send(study: str, command: Command, *, wait_s: float = WAIT_S) -> CommandAnswer:
    """Leave a command for the driver of a study of this machine, and return its answer.

    Where nobody runs the study, or its driver is busy for longer, the command stays queued; what is wrong with it in
    the study as it stands now is said at once.

    Raises:
        CommandError: it is refused.
        StudyError: there is no such study.
        HomeError: the study folder cannot be written.
    """
    folder = StudyFolder.open(study)
    if not folder.is_running():
        _accepted(decide(command, steered(folder, folder.journal())))
        folder.inbox().put(command)
        return _queued(command, f"nobody runs study {study!r}: `loraxs-search resume {study}` carries it out first")
    folder.inbox().put(command)
    answer = _await_answer(folder, command, time.monotonic() + wait_s)
    if answer is None:
        why = f"the search has not answered within {wait_s:g} s, it may be starting or scoring"
        return _queued(command, f"{why}; `loraxs-search status {study}` shows what waits")
    return _accepted(answer)


def _await_answer(folder: StudyFolder, command: Command, until: float) -> CommandAnswer | None:
    journal = folder.journal()
    while True:
        journal.refresh()
        record = journal.commands.get(command.command_id)
        if record is not None and record.answer is not None:
            return record.answer
        if time.monotonic() >= until:
            return None
        time.sleep(_LOOK_EVERY_S)


def _accepted(answer: CommandAnswer) -> CommandAnswer:
    if answer.state is AnswerState.REFUSED:
        raise CommandError(answer.text, hint=answer.hint or None)
    return answer


def _queued(command: Command, text: str) -> CommandAnswer:
    return CommandAnswer(command.command_id, AnswerState.QUEUED, text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as containers have
        return "somebody"
