"""Sends a command to the search of a study, and waits a little for the answer: also as one Python function a verb."""

from __future__ import annotations

import getpass
import json
import platform
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loraxs_search.errors import CommandError, shortened
from loraxs_search.mlflow_uri import check_server, redact, resolve_uri, sqlite_path
from loraxs_search.records import AnswerState, Command, CommandAnswer, Scalar
from loraxs_search.steering import decide, describe, foreseen
from loraxs_search.studies import StudyFolder, holder_elsewhere, list_studies


def trial_name(trial: str | int) -> str:
    """Return a trial's id as studies have it: 3 and 00003 are the same."""
    text = str(trial)
    return text.lstrip("0").zfill(5) if text.isascii() and text.isdigit() else text


def read_params(pairs: Sequence[str]) -> dict[str, Scalar]:
    """Return what `--set NAME=VALUE` gives: numbers, true and false as such, else text.

    Raises:
        CommandError: one is no pair.
    """
    params: dict[str, Scalar] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise CommandError(f"`--set` must be NAME=VALUE, but got {shortened(pair)}.")
        params[name] = _scalar(value)
    return params


def _scalar(text: str) -> Scalar:
    for read in (int, float) if "_" not in text else ():  # Python reads 1_6 as 16
        try:
            return read(text)
        except ValueError:
            continue
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool) else text


WAIT_S = 15.0
_LOOK_EVERY_S = 0.1


def new_command(
    verb: str,
    trial_ids: Sequence[str | int] = (),
    arguments: Mapping[str, Scalar] | None = None,
    params: Mapping[str, Scalar] | None = None,
) -> Command:
    """Return a command of this user on this machine, with its own id; numpy's numbers become Python's."""
    return Command(
        uuid.uuid4().hex,
        verb,
        tuple(dict.fromkeys(map(trial_name, trial_ids))),
        {name: _as_python(value) for name, value in (arguments or {}).items()},
        {name: _as_python(value) for name, value in (params or {}).items()},
        f"{_user()} on {platform.node()}",
        time.time(),
    )


def _as_python(value: Any) -> Scalar:
    return value.tolist() if hasattr(value, "tolist") else value  # type: ignore[no-any-return]


def send(study: str, command: Command, *, tracking_uri: str | None = None) -> CommandAnswer:
    """Leave a command for the driver of a study, and return its answer.

    It goes through the study's folder where this machine runs the study, or ran it last. From other machines it goes
    through MLflow, which takes a few words and answers later. Where nobody runs the study, or its driver is busy for
    longer, the command stays queued.

    Raises:
        CommandError: it is refused.
        StudyError: there is no such study.
        TrackingError: the MLflow server does not answer, or refuses.
        HomeError: the study folder cannot be written.
    """
    if tracking_uri is not None or not StudyFolder.exists(study):
        return _send_away(resolve_uri(tracking_uri), study, command)
    folder = StudyFolder.open(study)
    storage = folder.info.storage
    if not folder.is_running() and storage is not None and (place := holder_elsewhere(storage, study)):
        return _send_to(place, folder, command)
    return _send_here(folder, command)


def _send_here(folder: StudyFolder, command: Command) -> CommandAnswer:
    name = folder.name
    if not folder.is_running():
        # What is wrong with it, behind the commands that wait, is said now and not at the next resume.
        _accepted(decide(command, foreseen(folder)))
        folder.inbox().put(command)
        why = f"nobody runs study {name!r} on this machine: `loraxs-search resume {name}` carries it out first"
        return _queued(command, why)
    folder.inbox().put(command)
    answer = _await_answer(folder, command)
    if answer is None:
        why = f"the search has not answered within {WAIT_S:g} s: it may be starting, or killed"
        return _queued(command, f"{why}; `loraxs-search status {name}` shows what waits")
    return _accepted(answer)


def _await_answer(folder: StudyFolder, command: Command) -> CommandAnswer | None:
    """Return the answer, None where there is none within `WAIT_S`."""
    until = time.monotonic() + WAIT_S
    journal = folder.journal()
    while True:
        journal.refresh()
        record = journal.commands.get(command.command_id)
        if record is not None and record.answer is not None:
            return record.answer
        if time.monotonic() >= until:
            return None
        time.sleep(_LOOK_EVERY_S)


def _send_to(place: str, folder: StudyFolder, command: Command) -> CommandAnswer:
    """Send a command to a study whose folder here is a copy that its driver, on another machine, does not read.

    Raises:
        CommandError: that driver's MLflow cannot be reached from here.
    """
    uri = resolve_uri(folder.info.tracking_uri)
    if sqlite_path(uri) is None:
        return _send_away(uri, folder.name, command, place)
    raise CommandError(
        f"Study {folder.name!r} runs on {place}, and its MLflow is a file: `{command.verb}` cannot reach it from here.",
        hint=f"type it on {place}; or if that driver was killed, take the study over: "
        f"`loraxs-search resume {folder.name}`",
    )


def _send_away(uri: str, study: str, command: Command, place: str = "") -> CommandAnswer:
    """Write a word for a driver on another machine to its MLflow.

    Args:
        place: That machine, where it is known.
    Raises:
        CommandError: the command is more than a word, or the word would reach nobody.
    """
    from loraxs_search.tracking.command_tags import ANSWER, SEARCH_WORDS, TRIAL_WORDS, TaggedStudy

    if sqlite_path(uri) is None:
        check_server(uri)
    tagged = TaggedStudy(uri, study, list_studies())
    words = TRIAL_WORDS if command.trial_ids else SEARCH_WORDS
    if command.verb not in words or any(command.arguments.values()) or command.params:
        place = place or tagged.machine
        raise CommandError(
            f"From another machine, MLflow takes `stop` for trials, and `pause`, `continue` and `finish` for the whole "
            f"search, without options; but got `{describe(replace(command, sent_by=''))}`.",
            hint=f"type it on {place or 'the machine'}, which runs study {study!r}",
        )
    if tagged.has_ended:
        raise CommandError(f"Study {study!r} at {redact(uri)} has ended, so there is nothing to {command.verb}.")
    if tagged.is_interrupted:
        raise CommandError(
            f"A search must run to receive commands through MLflow, but study {study!r} was interrupted.",
            hint=f"run `loraxs-search resume {study}` on {place or tagged.machine or 'its machine'}; send it then",
        )
    tagged.write(command.verb, command.trial_ids)
    runs = "the run of each trial" if command.trial_ids else "the search's run"
    return _queued(command, f"`{command.verb}` is on {runs} in MLflow; the search answers there, in the tag `{ANSWER}`")


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
        return "a user"


def stop_trials(study: str, *trials: str | int, now: bool = False, tracking_uri: str | None = None) -> CommandAnswer:
    """Stop trials of a running search: each ends as PRUNED at its next report, or `now` at its next step.

    Args:
        tracking_uri: Write it to this MLflow server; by default it goes through the study's folder where that is on
            this machine, else to the default server.
    Returns:
        The search's answer; `queued` where nobody runs the study, its driver is busy, or another machine runs it.
    Raises:
        CommandError: the search refuses it: the trial is unknown or has ended.
        StudyError: there is no such study.
        TrackingError: the server does not answer, or refuses.
    """
    return _commanded(study, "stop", trials, {"now": now}, tracking_uri=tracking_uri)


def pause_trials(study: str, *trials: str | int, tracking_uri: str | None = None) -> CommandAnswer:
    """Pause trials of a running search at their next report; without trials the whole search.

    Arguments and errors are those of `stop_trials`.
    """
    return _commanded(study, "pause", trials, tracking_uri=tracking_uri)


def continue_trials(study: str, *trials: str | int, tracking_uri: str | None = None) -> CommandAnswer:
    """Continue trials that were paused; without trials the whole search.

    Arguments and errors are those of `stop_trials`.
    """
    return _commanded(study, "continue", trials, tracking_uri=tracking_uri)


def finish_study(study: str, *, tracking_uri: str | None = None) -> CommandAnswer:
    """Finish a running search without new trials; arguments and errors are those of `stop_trials`."""
    return _commanded(study, "finish", (), tracking_uri=tracking_uri)


def add_trial(study: str, params: Mapping[str, Scalar]) -> CommandAnswer:
    """Add a trial with these params to a search; the sampler proposes those that are left out.

    It comes on top of `search.trials`, and the sampler learns from it. The answer and errors
    are those of `stop_trials`.
    """
    return _commanded(study, "add", (), params=params)


def clone_trial(
    study: str,
    trial: str | int,
    params: Mapping[str, Scalar] | None = None,
    *,
    force: bool = False,
) -> CommandAnswer:
    """Add a trial with the params of another one, but for those given.

    The answer and errors are those of `stop_trials`.

    Args:
        force: Let the optimizer's params lie outside of the space.
    """
    return _commanded(study, "clone", [trial], {"force": force}, params)


def extend_study(study: str, *, trials: int | None = None, time: str | None = None) -> CommandAnswer:
    """Give a search more trials or more time; a finished one continues with `resume`.

    The answer and errors are those of `stop_trials`.

    Args:
        time: Such as `1h` or `90m`, beyond the time budget or the time spent.
    """
    given = {"trials": trials, "time": time}
    arguments = {name: value for name, value in given.items() if value is not None}
    return _commanded(study, "extend", (), arguments)


def _commanded(
    study: str,
    verb: str,
    trials: Sequence[str | int],
    arguments: Mapping[str, Scalar] | None = None,
    params: Mapping[str, Scalar] | None = None,
    *,
    tracking_uri: str | None = None,
) -> CommandAnswer:
    return send(study, new_command(verb, trials, arguments, params), tracking_uri=tracking_uri)
