"""loraxs-search rm TASK:VERSION"""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._completion import tasks
from loraxs_search.cli._output import JsonOption, TrackingOption, emit


def command(
    name: Annotated[str, typer.Argument(help="TASK:version.", autocompletion=tasks)],
    force: Annotated[bool, typer.Option("--force", help="Even a champion or the best version.")] = False,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove one version of a task from the registry.

    A champion and the version with the best test score are removed only with --force. Without its champion a task has
    none. Copies that were pulled stay where they are.

    Example: loraxs-search rm movie-reviews:1
    """
    from loraxs_search.api import remove

    decision = remove(name, force=force, tracking_uri=tracking_uri)
    emit(as_json, decision, lambda: print(f"{name}: removed"))
