"""Sends a command to the search of a study, and waits a little for the answer: also as one Python function a verb."""

from __future__ import annotations

import contextlib
import getpass
import platform
import time
import uuid
from collections.abc import Mapping, Sequence

from loraxs_search.errors import CommandError, StudyError, did_you_mean, shortened
from loraxs_search.records.literals import Scalar
from loraxs_search.records.search import AnswerState, Command, CommandAnswer
from loraxs_search.steering import decide, foreseen
from loraxs_search.studies.commands import put_elsewhere
from loraxs_search.studies.folder import StudyFolder, list_studies
from loraxs_search.studies.lease import holder_elsewhere
from loraxs_search.studies.storage import Storage


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
        params[name] = value
        for read in (int, float) if "_" not in value else ():  # Python reads 1_6 as 16
            with contextlib.suppress(ValueError):
                params[name] = read(value)
                break
        else:
            params[name] = {"true": True, "false": False}.get(value, value)
    return params


WAIT_S = 15.0
_LOOK_EVERY_S = 0.1


def new_command(
    verb: str,
    trial_ids: Sequence[str | int] = (),
    arguments: Mapping[str, Scalar] | None = None,
    params: Mapping[str, Scalar] | None = None,
) -> Command:
    """Return a command of this user on this machine, with its own id; numpy's numbers become Python's."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as containers have
        user = "a user"
    given, drawn = (
        {name: value.tolist() if hasattr(value, "tolist") else value for name, value in (values or {}).items()}
        for values in (arguments, params)
    )
    names = tuple(dict.fromkeys(map(trial_name, trial_ids)))
    return Command(uuid.uuid4().hex, verb, names, given, drawn, f"{user} on {platform.node()}", time.time())


def send(study: str, command: Command) -> CommandAnswer:
    """Leave a command for the driver of a study, and return its answer.

    It goes through the study's folder; of a study that another machine runs, through its storage. Where nobody runs the
    study, or its driver is busy for longer than `WAIT_S`, the command stays queued.

    Raises:
        CommandError: it is refused.
        StudyError: there is no such study here.
        HomeError: the study folder cannot be written.
        StorageError: the study's storage cannot be used.
    """
    if not StudyFolder.exists(study):
        raise StudyError(
            f"{did_you_mean(study, list_studies())}`study` must be one of this machine, but there is no {study!r}.",
            hint=f"type it on the machine that runs the study: `ssh MACHINE loraxs-search {command.verb} {study} ...`",
        )
    folder = StudyFolder.open(study)
    storage, answer = folder.info.storage, None
    if folder.is_running():
        folder.inbox.put(command)
        why = "the search is starting or busy: it will be carried out in a moment, or by the next `resume`; "
        why += f"`loraxs-search status {study}` shows what waits"
        journal, until = folder.journal(), time.monotonic() + WAIT_S
        while True:
            journal.refresh()
            answer = journal.answers.get(command.command_id)
            if answer is not None or time.monotonic() >= until:
                break
            time.sleep(_LOOK_EVERY_S)
    elif storage is not None and (place := holder_elsewhere(storage, study)):
        put_elsewhere(Storage(storage), study, command)
        why = f"study {study!r} runs on {place}, which takes it from {storage} within seconds"
    else:
        # What is wrong with it, behind the commands that wait, is said now and not at the next resume.
        foretold = decide(command, foreseen(folder))
        if foretold.state is AnswerState.REFUSED:
            answer = foretold
        else:
            folder.inbox.put(command)
        why = f"nobody runs study {study!r} on this machine: `loraxs-search resume {study}` carries it out first"
    if answer is None:
        return CommandAnswer(command.command_id, AnswerState.QUEUED, why)
    if answer.state is AnswerState.REFUSED:
        raise CommandError(answer.text, hint=answer.hint or None)
    return answer


def stop_trials(study: str, *trials: str | int, now: bool = False) -> CommandAnswer:
    """Stop trials of a running search: each ends as PRUNED at its next report, or `now` at its next step.

    Returns:
        The search's answer; `queued` where nobody runs the study, its driver is busy, or another machine runs it.
    Raises:
        CommandError: the search refuses it: the trial is unknown or has ended.
        StudyError: there is no such study on this machine.
    """
    return send(study, new_command("stop", trials, {"now": now}))


def finish_study(study: str) -> CommandAnswer:
    """Finish a running search: it proposes no new trials; the answer and errors are those of `stop_trials`."""
    return send(study, new_command("finish"))


def add_trial(
    study: str, params: Mapping[str, Scalar] | None = None, *, source: str | int | None = None
) -> CommandAnswer:
    """Add a trial with these params to a search.

    It comes on top of `search.trials`, and the sampler learns from it. The answer and errors are those of
    `stop_trials`.

    Args:
        source: The trial whose params it has where `params` has none; by default the sampler proposes these.
    """
    return send(study, new_command("add", [] if source is None else [source], params=params))


def extend_study(study: str, *, trials: int | None = None, time: str | None = None) -> CommandAnswer:
    """Give a search more trials or more time; a finished one continues with `resume`.

    The answer and errors are those of `stop_trials`.

    Args:
        time: Such as `1h` or `90m`, beyond the time budget or the time spent.
    """
    given = {"trials": trials, "time": time}
    return send(study, new_command("extend", (), {name: value for name, value in given.items() if value is not None}))
