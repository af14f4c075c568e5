"""loraxs-search sync [STUDY]"""

from __future__ import annotations

import sys
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

    You can repeat it: records that are there already do not change. Commands such as `stop`, to studies of other
    machines, that wait here for a server are sent as well. A study in a shared storage that another machine has gone on
    with is left to that one. Exits 1 if records or commands still wait, or if a study is damaged.

    Example: loraxs-search sync
    """
    from loraxs_search.search.driver.sync import sync
    from loraxs_search.steering.send import send_waiting
    from loraxs_search.studies import StudyFolder

    sent = send_waiting()
    is_elsewhere = study is not None and not StudyFolder.exists(study) and study in {it.study for it in sent}
    done = [] if is_elsewhere else list(sync(study))
    columns = ("study", "records", "problem")
    emit(as_json, done, lambda: print_table(columns, [(it.study, it.state, it.problem) for it in done]))
    for command in sent:
        print(f"{command.study}: {command.text}", file=sys.stderr)
    if any(it.state in ("waiting", "damaged") for it in done) or any(it.is_waiting for it in sent):
        raise Exit(1)
