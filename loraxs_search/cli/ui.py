"""loraxs-search ui"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from loraxs_search.cli._output import TrackingOption


def command(
    port: Annotated[int, typer.Option("--port", help="Port to serve on.", min=1, max=65535)] = 5000,
    host: Annotated[str, typer.Option("--host", help="Address to serve on.")] = "127.0.0.1",
    tracking_uri: TrackingOption = None,
) -> None:
    """Serve the MLflow UI on the embedded store.

    It runs until Ctrl-C. Choose "Model training" at the top left: each task is an experiment, each search a run with
    its trials below it, each champion a registered model. A search has its YAML, versions and hardware. A trial has its
    params, metrics, adapter size and why it ended. A server given with --tracking-uri has a UI of its own.
    """
    from loraxs_search.tracking import resolve_uri, run_ui

    print(f"http://{host}:{port}: choose `Model training` at the top left, then the task", file=sys.stderr)
    raise typer.Exit(run_ui(resolve_uri(tracking_uri), host=host, port=port))
