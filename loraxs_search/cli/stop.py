"""loraxs-search stop STUDY TRIAL..."""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._completion import StudyArgument
from loraxs_search.cli._output import JsonOption, TrackingOption
from loraxs_search.cli._steering import TrialsArgument, send_command


def command(
    study: StudyArgument,
    trials: TrialsArgument,
    now: Annotated[bool, typer.Option("--now", help="At the next step, without another report.")] = False,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop trials of a running search.

    A stopped trial ends as PRUNED at its next report. With --now it ends at its next step, and its last report counts.

    Commands reach the search through its study folder. Where the study is not on this machine, they go through MLflow:
    as tags of the study's run. You can type the same commands into MLflow's UI: add the tag `loraxs.command` with the
    value `stop` to a trial's run, or `stop 00003` to the study's. The search answers in the tag `loraxs.answer` and
    deletes the command. Whoever may write to MLflow may steer.

    Without a running search the command is queued: `resume` carries it out first. If the MLflow server is away, it is
    queued on this machine: `loraxs-search sync` sends it, and so does the next command.

    Example: loraxs-search stop reviews 00003 00007 --now
    """
    send_command(study, "stop", trials, {"now": now}, tracking_uri=tracking_uri, as_json=as_json)
