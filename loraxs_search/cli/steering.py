"""The verbs that steer a search: stop, finish, add, extend"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from loraxs_search.cli._output import JsonOption, StudyArgument, emit
from loraxs_search.records.literals import Scalar
from loraxs_search.records.search import AnswerState


def _send_command(
    study: str,
    verb: str,
    trial_ids: Sequence[str] = (),
    arguments: Mapping[str, Scalar] | None = None,
    params: Mapping[str, Scalar] | None = None,
    *,
    as_json: bool,
) -> None:
    """Send a command, and print the answer; what is only queued is said on stderr.

    Raises:
        CommandError: the command is refused.
    """
    from loraxs_search.steering.send import new_command, send

    answer = send(study, new_command(verb, trial_ids, arguments, params))
    is_queued = answer.state is AnswerState.QUEUED
    text, out = f"{study}: {'queued: ' if is_queued else ''}{answer.text}", sys.stderr if is_queued else sys.stdout
    emit(as_json, answer, lambda: print(text, file=out))


def stop(
    study: StudyArgument,
    trials: Annotated[list[str], typer.Argument(help="Trials, such as 00003.", metavar="TRIAL...")],
    now: Annotated[bool, typer.Option("--now", help="At the next step, without another report.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Stop trials of a running search.

    A stopped trial ends as PRUNED at its next report. With --now it ends at its next step, and its last report counts.

    Without a running search the command is queued: `resume` carries it out first. Type commands on the machine that
    runs the study, or through ssh. On a machine that has fetched a study from its storage, they go through that
    storage.

    Example: loraxs-search stop reviews 00003 00007 --now
    """
    _send_command(study, "stop", trials, {"now": now}, as_json=as_json)


def finish(study: StudyArgument, as_json: JsonOption = False) -> None:
    """Finish a running search: it proposes no more trials.

    Running trials, and those from `add`, train to their ends. Then the candidates are scored, as always. Stop the
    running trials too, if you do not want to wait for them.

    Example: loraxs-search finish reviews
    """
    _send_command(study, "finish", as_json=as_json)


def add(
    study: StudyArgument,
    params: Annotated[
        list[str] | None,
        typer.Option("--set", help="A param of the trial, e.g. --set rank=16; repeatable.", metavar="NAME=VALUE"),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="Take the other params from this trial.", metavar="TRIAL")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add a trial of your own to a search.

    Values must be ones that the space allows. What you leave out is as in the trial that --from names, or else what the
    sampler would propose for this trial. A parameter that only goes with certain values of another one needs that one
    too.

    The trial starts once a slot is free, before new proposals. It comes on top of `search.trials`, and the sampler
    learns from it. `finish` ends proposals, and not what you have added.

    A finished search continues with `resume`. Its candidates are then chosen again, among all trials.

    Example: loraxs-search add reviews --from 00003 --set learning_rate=1e-3
    """
    from loraxs_search.steering.send import read_params

    _send_command(study, "add", [source] if source else [], params=read_params(params or ()), as_json=as_json)


def extend(
    study: StudyArgument,
    trials: Annotated[int | None, typer.Option("--trials", help="Trials to propose beyond those planned.")] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="Time beyond the time budget, such as 1h, 90m or 1h30m.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Give a search more trials or more time, a finished one too.

    A running search continues at once. With a finished one, run `loraxs-search resume STUDY` next. It sets the
    candidates aside, trains, and chooses among all trials. What was promoted stays. The new finalist answers the same
    test rows as the one before, so `promote` demands more confidence, as of any further decision on these rows.

    --time comes on top of the time budget, or of the time spent, where that is more. Without a time budget the search
    gets one: the time spent so far, and this. Trials that the time budget had ended continue first.

    Example: loraxs-search extend reviews --trials 12 --time 1h
    """
    given = {"trials": trials, "time": time}
    arguments = {name: value for name, value in given.items() if value is not None}
    _send_command(study, "extend", arguments=arguments, as_json=as_json)
