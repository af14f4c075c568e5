"""What the verbs that steer a running search share."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from loraxs_search.cli._completion import trials
from loraxs_search.cli._output import emit
from loraxs_search.records import AnswerState, CommandAnswer, Scalar

TrialsArgument = Annotated[
    list[str], typer.Argument(help="Trials, such as 00003.", metavar="TRIAL...", autocompletion=trials)
]
ParamOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A param of the trial, e.g. --set rank=16; repeatable.", metavar="NAME=VALUE"),
]
AnyTrialsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Trials, such as 00003; default: the whole study.", metavar="[TRIAL...]", autocompletion=trials
    ),
]


def send_command(
    study: str,
    verb: str,
    trial_ids: Sequence[str] = (),
    arguments: Mapping[str, Scalar] | None = None,
    params: Mapping[str, Scalar] | None = None,
    *,
    tracking_uri: str | None = None,
    as_json: bool,
) -> None:
    """Send a command, and print the answer; what is only queued is said on stderr.

    Raises:
        CommandError: the command is refused.
    """
    from loraxs_search.steering.send import new_command, send

    answer = send(study, new_command(verb, trial_ids, arguments, params), tracking_uri=tracking_uri)
    emit(as_json, answer, lambda: _show(study, answer))


def _show(study: str, answer: CommandAnswer) -> None:
    out = sys.stderr if answer.state is AnswerState.QUEUED else sys.stdout
    said = "queued: " if answer.state is AnswerState.QUEUED else ""
    print(f"{study}: {said}{answer.text}", file=out)
