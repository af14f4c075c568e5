"""loraxs-search stop STUDY TRIAL..."""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._output import JsonOption
from loraxs_search.cli._steering import StudyArgument, TrialsArgument, send_command


def command(
    study: StudyArgument,
    trials: TrialsArgument,
    now: Annotated[bool, typer.Option("--now", help="At the next step, without another report.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Stop trials of a running search.

    For example: `loraxs-search stop reviews 00003 00007`. A stopped trial ends as PRUNED at its next report.
    """
    from loraxs_search.steering.send import new_command

    send_command(study, new_command("stop", trials, {"now": now}), as_json)
