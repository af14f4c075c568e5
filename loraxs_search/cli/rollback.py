"""loraxs-search rollback TASK"""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._completion import TaskArgument
from loraxs_search.cli._output import JsonOption, TrackingOption, emit


def command(
    task: TaskArgument,
    to: Annotated[int | None, typer.Option("--to", help="Version; default: the champion before this one.")] = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restore the previous champion of a task, or the version of --to.

    From then on, `pull TASK` gets that version. `history` shows the change.

    Example: loraxs-search rollback movie-reviews
    """
    from loraxs_search.api import rollback

    decision = rollback(task, to=to, tracking_uri=tracking_uri)
    emit(as_json, decision, lambda: print(f"{task}: {decision.reasons[-1]}, trial {decision.winner}"))
