"""Sends a command to the search of a study, and waits a little for the answer."""

from __future__ import annotations

import getpass
import platform
import time
import uuid
from collections.abc import Mapping, Sequence

from loraxs_search.errors import CommandError
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.records import AnswerState, Command, CommandAnswer, Scalar
from loraxs_search.steering import decide, steered
from loraxs_search.steering.text import trial_name
from loraxs_search.studies import StudyFolder

WAIT_S = 15.0
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
        tuple(dict.fromkeys(map(trial_name, trial_ids))),
        dict(arguments or {}),
        dict(params or {}),
        f"{_user()} on {platform.node()}",
        time.time(),
    )


def send(
    study: str, command: Command, *, tracking_uri: str | None = None, wait_s: float | None = None
) -> CommandAnswer:
    """Leave a command for the driver of a study, and return its answer.

    It goes through the study's folder where the study is on this machine, and through MLflow where it is not, or where
    a `tracking_uri` is given. Where nobody runs the study, or its driver is busy for longer, the command stays queued.

    Args:
        wait_s: How long to wait for the answer; `WAIT_S` by default.
    Raises:
        CommandError: it is refused.
        StudyError: there is no such study.
        TrackingError: the MLflow server is away, or refuses.
        HomeError: the study folder cannot be written.
    """
    wait_s = WAIT_S if wait_s is None else wait_s
    if tracking_uri is None and StudyFolder.exists(study):
        return _send_here(StudyFolder.open(study), command, wait_s)
    return _send_away(resolve_uri(tracking_uri), study, command, wait_s)


def _send_here(folder: StudyFolder, command: Command, wait_s: float) -> CommandAnswer:
    name = folder.name
    if not folder.is_running():
        # What is wrong with it in the study as it stands is said now, not at the next resume.
        _accepted(decide(command, steered(folder, folder.journal())))
        folder.inbox().put(command)
        why = f"nobody runs study {name!r} on this machine: `loraxs-search resume {name}` carries it out first"
        return _queued(command, why)
    folder.inbox().put(command)
    answer = _await_answer(folder, command, time.monotonic() + wait_s)
    if answer is None:
        return _queued(command, f"{_not_yet(wait_s)}; `loraxs-search status {name}` shows what waits")
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


def _send_away(uri: str, study: str, command: Command, wait_s: float) -> CommandAnswer:
    from loraxs_search.tracking.steered_studies import find_steered

    run = find_steered(uri, study)
    run.send(command)
    if not run.is_running:
        return _queued(command, f"nobody runs study {study!r}: its `loraxs-search resume` carries it out first")
    answer = run.answer(command.command_id, wait_s)
    if answer is None:
        tag = f"loraxs.answer.{command.command_id}"
        return _queued(
            command, f"{_not_yet(wait_s)}; the tag `{tag}` of the study's run in MLflow will have the answer"
        )
    return _accepted(answer)


def _not_yet(wait_s: float) -> str:
    return f"the search has not answered within {wait_s:g} s: it may be starting, scoring candidates, or killed"


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
