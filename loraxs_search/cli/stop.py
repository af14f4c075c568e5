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

    Without a running search the command is queued: `resume` carries it out first.

    On the machine that runs the study, commands go through its folder. From another machine, `stop` without --now goes
    through MLflow, and so do `pause`, `continue` and `finish` for the whole search. They write the tag `loraxs.command`
    to the run of the trial or of the search. You can type the same in MLflow's UI: the tag `loraxs.command` with the
    value `stop` on a trial's run, or with `pause`, `continue` or `finish` on the search's. The search deletes the tag
    and answers in the tag `loraxs.answer`. Whoever may write to MLflow may steer. Type all other commands on the
    machine that runs the study.

    Example: loraxs-search stop reviews 00003 00007 --now
    """
    send_command(study, "stop", trials, {"now": now}, tracking_uri=tracking_uri, as_json=as_json)
