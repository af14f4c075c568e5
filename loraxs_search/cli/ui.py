"""loraxs-search ui [STUDY]"""

from __future__ import annotations

import os
import sys
import webbrowser
from typing import Annotated

import typer

from loraxs_search.cli._output import TrackingOption
from loraxs_search.mlflow_uri import sqlite_path


def ui(
    study: Annotated[str | None, typer.Argument(help="Study whose trials to show; default: all tasks.")] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", help="Port to serve on; default: the first free one from 5000 on.", min=1, max=65535),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to serve on.")] = "127.0.0.1",
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the link only; open no browser.")] = False,
    tracking_uri: TrackingOption = None,
) -> None:
    """Serve the MLflow UI, and open it where it shows a study.

    The link shows the trials of the study, best first, with their params, stored bytes, state and why each one ended.
    Without a study it shows all tasks: each is an experiment, each search a run with its trials below it, each champion
    a registered model.

    It prints the link and runs until Ctrl-C. What the server says goes to `ui.log` in the home. A tracking server has
    its own UI: then only the link is printed and opened.

    Example: loraxs-search ui reviews
    """
    from loraxs_search.mlflow_uri import resolve_uri
    from loraxs_search.studies.folder import StudyFolder
    from loraxs_search.studies.lookup import store_of
    from loraxs_search.tracking.store import recorded_id
    from loraxs_search.tracking.ui import run_ui, ui_page

    folder = StudyFolder.open(study) if study is not None and StudyFolder.exists(study) else None
    uri = store_of(folder) if folder is not None and tracking_uri is None else resolve_uri(tracking_uri)
    link = ui_page(uri, study, recorded_id(folder.path) if folder is not None else "")

    def show(address: str) -> None:
        print(link(address), flush=True)
        if not no_open and _has_browser():
            webbrowser.open(link(address))

    if sqlite_path(uri) is None:
        show(uri)
        return
    print("starting the UI; Ctrl-C ends it", file=sys.stderr)
    raise typer.Exit(run_ui(uri, host=host, port=port, ready=show))


def _has_browser() -> bool:
    """Whether there is a browser with a window: one in the terminal would take its place."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")))
