"""loraxs-search extend STUDY --trials N --time 1h"""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._completion import StudyArgument
from loraxs_search.cli._output import JsonOption
from loraxs_search.cli._steering import send_command


def command(
    study: StudyArgument,
    trials: Annotated[int | None, typer.Option("--trials", help="Trials to propose beyond those planned.")] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="Time beyond the time budget, such as 1h, 90m or 1h30m.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Give a search more trials or more time, a finished one too.

    A running search goes on at once. With a finished one, run `loraxs-search resume STUDY` next. It sets the candidates
    aside, trains, and chooses among all trials. What was promoted stays. The new finalist answers the same test rows as
    the one before, so `promote` demands more confidence, as of any further decision on these rows.

    --time comes on top of the time budget, or of the time spent, where that is more. Without a time budget the search
    gets one: the time spent so far, and this.

    Example: loraxs-search extend reviews --trials 12 --time 1h
    """
    given = {"trials": trials, "time": time}
    arguments = {name: value for name, value in given.items() if value is not None}
    send_command(study, "extend", arguments=arguments, as_json=as_json)
