"""loraxs-search ui"""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._output import TrackingOption


def command(
    port: Annotated[int, typer.Option("--port", help="Port to serve on.")] = 5000,
    host: Annotated[str, typer.Option("--host", help="Address to serve on.")] = "127.0.0.1",
    tracking_uri: TrackingOption = None,
) -> None:
    """Open the MLflow UI on the embedded store, until Ctrl-C."""
    from loraxs_search.tracking import resolve_uri, run_ui

    raise typer.Exit(run_ui(resolve_uri(tracking_uri), host=host, port=port))
