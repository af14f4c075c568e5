"""What the verbs that steer a running search share."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from loraxs_search.cli._output import emit
from loraxs_search.records import AnswerState, Command, CommandAnswer

StudyArgument = Annotated[str, typer.Argument(help="Name of the study.")]
TrialsArgument = Annotated[list[str], typer.Argument(help="Trials, such as 00003.", metavar="TRIAL...")]


def send_command(study: str, command: Command, as_json: bool) -> None:
    """Send a command, and print the answer; what is only queued is said on stderr.

    Raises:
        CommandError: the command is refused.
    """
    from loraxs_search.steering.send import send

    answer = send(study, command)
    emit(as_json, answer, lambda: _show(study, answer))


def _show(study: str, answer: CommandAnswer) -> None:
    out = sys.stderr if answer.state is AnswerState.QUEUED else sys.stdout
    said = "queued: " if answer.state is AnswerState.QUEUED else ""
    print(f"{study}: {said}{answer.text}", file=out)
