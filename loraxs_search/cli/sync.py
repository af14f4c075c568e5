"""loraxs-search sync [STUDY]"""

from __future__ import annotations

from typing import Annotated

import typer
from typer.exceptions import Exit

from loraxs_search.cli._completion import studies
from loraxs_search.cli._output import JsonOption, emit, print_table


def command(
    study: Annotated[
        str | None, typer.Argument(help="Name of the study; default: all studies.", autocompletion=studies)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write to MLflow what studies could not while it was unreachable.

    You can repeat it: records that are there already do not change. A study in a shared storage that another machine
    has taken over is left to that machine. Exits 1 if records still wait, or if a study cannot be read.

    Example: loraxs-search sync
    """
    from loraxs_search.search.driver.sync import sync

    done = list(sync(study))
    columns = ("study", "records", "problem")
    emit(as_json, done, lambda: print_table(columns, [(it.study, it.state, it.problem) for it in done]))
    if any(it.state in ("waiting", "unreadable") for it in done):
        raise Exit(1)
