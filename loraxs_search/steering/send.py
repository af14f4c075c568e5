"""Sends a command to the search of a study, and waits a little for the answer."""

from __future__ import annotations

import getpass
import platform
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loraxs_search.errors import CommandError, LoraxsError, TrackingError
from loraxs_search.mlflow_http import check_server
from loraxs_search.mlflow_uri import redact, resolve_uri, sqlite_path
from loraxs_search.records import AnswerState, Command, CommandAnswer, Scalar
from loraxs_search.steering import decide, describe, get_verb, steered
from loraxs_search.steering.outbox import Outbox, WaitingCommand
from loraxs_search.steering.text import trial_name
from loraxs_search.studies import StudyFolder, holder_elsewhere, list_studies

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

    It goes through the study's folder where the study is on this machine, and through MLflow where it is not, where a
    driver on another machine has it, or where a `tracking_uri` is given. Where nobody runs the study, or its driver is
    busy for longer, the command stays queued. So it does on this machine while the server is away: `send_waiting` sends
    it, and so does whatever command follows.

    Args:
        wait_s: How long to wait for the answer; `WAIT_S` by default.
    Raises:
        CommandError: it is refused.
        StudyError: there is no such study.
        TrackingError: the MLflow server refuses.
        HomeError: the study folder, or the state folder, cannot be written.
    """
    wait_s = WAIT_S if wait_s is None else wait_s
    if tracking_uri is not None or not StudyFolder.exists(study):
        return _send_away(resolve_uri(tracking_uri), study, command, wait_s)
    folder = StudyFolder.open(study)
    if not folder.is_running() and (place := _place_elsewhere(folder)):
        return _send_to(place, folder, command, wait_s)
    return _send_here(folder, command, wait_s)


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


def _place_elsewhere(folder: StudyFolder) -> str:
    """Return the machine whose driver has a study that began here; empty where none has."""
    storage = folder.info.storage
    return "" if storage is None else holder_elsewhere(storage, folder.name)


def _send_to(place: str, folder: StudyFolder, command: Command, wait_s: float) -> CommandAnswer:
    """Send a command to a study whose folder here is a copy that its driver, on another machine, does not read.

    Raises:
        CommandError: that driver's MLflow cannot be reached from here.
    """
    uri = resolve_uri(folder.info.tracking_uri)
    if sqlite_path(uri) is None:
        return _send_away(uri, folder.name, command, wait_s)
    raise CommandError(
        f"`{command.verb}` must reach the driver of study {folder.name!r}, but that is on {place}, which does not read "
        f"{folder.path}, and the study's MLflow is a file.",
        hint=f"send it on {place}; or if that driver was killed, take the study over: "
        f"`loraxs-search resume {folder.name}`",
    )


def _send_away(uri: str, study: str, command: Command, wait_s: float) -> CommandAnswer:
    from loraxs_search.tracking.steered_studies import find_steered

    outbox = Outbox()
    try:
        if sqlite_path(uri) is None:
            check_server(uri)
    except TrackingError as error:
        outbox.put(WaitingCommand(uri, study, command))
        return _queued(command, f"{error.message} `loraxs-search sync` sends it once the server answers")
    send_waiting(uri)  # what was sent before comes before
    run = find_steered(uri, study, list_studies())
    if run.has_ended and not get_verb(command.verb).after_training:
        raise CommandError(
            f"`{command.verb}` needs a study that still trains, but that of {study!r} at {redact(uri)} has ended.",
            hint=f"`loraxs-search extend {study} --trials N` gives it more",
        )
    run.send(command)
    if not run.is_running:
        ended = "has ended" if run.has_ended else "was interrupted"
        return _queued(
            command, f"study {study!r} {ended}: `loraxs-search resume {study}`, where its folder is, carries it out"
        )
    answer = run.answer(command.command_id, wait_s)
    if answer is None:
        tag = f"loraxs.answer.{command.command_id}"
        return _queued(
            command, f"{_not_yet(wait_s)}; the tag `{tag}` of the study's run in MLflow will have the answer"
        )
    return _accepted(answer)


@dataclass(frozen=True)
class SentLater:
    """What became of a command that waited on this machine.

    Args:
        is_waiting: Whether it still does.
        text: For people.
    """

    study: str
    is_waiting: bool
    text: str


def send_waiting(uri: str | None = None) -> list[SentLater]:
    """Send the commands that wait on this machine for a server that was away, oldest first.

    Args:
        uri: Of the server; None sends to all.
    """
    from loraxs_search.tracking.steered_studies import find_steered

    outbox, outcomes = Outbox(), list[SentLater]()
    for waiting in outbox.waiting(uri):
        what, text = describe(waiting.command), f"is sent to {redact(waiting.uri)}"
        try:
            check_server(waiting.uri)
            find_steered(waiting.uri, waiting.study).send(waiting.command)
        except TrackingError as error:
            text = f"still waits in {outbox.path}: {error.message}"
            outcomes.append(SentLater(waiting.study, True, f"{what} {text}"))
            continue
        except LoraxsError as error:  # there is no such study, whenever it is sent
            text = f"is dropped: {error.message}"
        outbox.remove(waiting)
        outcomes.append(SentLater(waiting.study, False, f"{what} {text}"))
    return outcomes


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
