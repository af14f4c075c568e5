"""loraxs-search ls"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from loraxs_search.cli._output import JsonOption, TrackingOption, emit, print_table

_COLUMNS = ("task", "version", "metric", "score", "over seeds", "bytes", "base", "promoted")


def command(
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N, by name.", metavar="N")] = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """List all tasks with their champions.

    The score is the champion's on the test rows. "Over seeds" is the mean and standard deviation of its trial and the
    refits, the same params from other seeds, on validation rows.

    Example: loraxs-search ls
    """
    from loraxs_search.api import ls

    tasks = ls(limit=limit, tracking_uri=tracking_uri)

    def show() -> None:
        rows = []
        for task in tasks:
            spread = (
                f"{task.mean:.4f} ± {task.spread:.4f}" if task.mean is not None and task.spread is not None else "-"
            )
            cells = (
                task.task,
                "-" if task.version is None else str(task.version),
                task.metric or "-",
                "-" if task.score is None else f"{task.score:.4f}",
                spread,
                "-" if task.stored_bytes is None else f"{task.stored_bytes:,}",
                task.base_model.rstrip("/").rpartition("/")[2] or "-",
                task.promoted_at[:16].replace("T", " ") or "-",
            )
            rows.append(cells)
        print_table(_COLUMNS, rows, right=frozenset({"version", "score", "bytes"}))
        if not rows:
            print("\nno tasks yet: `loraxs-search promote STUDY` makes one", file=sys.stderr)

    emit(as_json, tasks, show)
