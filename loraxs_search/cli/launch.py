"""loraxs-search launch SPACE..."""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._output import (
    AddressOption,
    JsonOption,
    RuntimeEnvOption,
    SetOption,
    StorageOption,
    TrackingOption,
)
from loraxs_search.cli._search import show_result, show_results, watched, watched_together
from loraxs_search.errors import UsageError
from loraxs_search.mlflow_uri import resolve_uri


def command(
    spaces: Annotated[list[str], typer.Argument(metavar="SPACE...", help="Space files, or names of shipped spaces.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the study; default: space and time.")] = None,
    address: AddressOption = None,
    runtime_env: RuntimeEnvOption = None,
    tracking_uri: TrackingOption = None,
    storage: StorageOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search a space; the finalist is scored on held-out rows.

    Nothing is written before the space, the base, the data, MLflow and Ray are seen to be in order. Ctrl-C ends the
    search in order (exit code 130), a second one at once; `loraxs-search resume` goes on after either, and after a
    kill. Prints the leaderboard, best first.

    Several spaces with one base are searched at once, each in a study of its own: trials of all of them share the
    passes over the base.
    """
    from loraxs_search.search import launch, launch_together

    changes = tuple(overrides or ())
    if len(spaces) == 1:
        with watched(resolve_uri(tracking_uri)) as (view, stop):
            result = launch(
                spaces[0],
                name=name,
                address=address,
                runtime_env=runtime_env,
                tracking_uri=tracking_uri,
                storage=storage,
                overrides=changes,
                view=view,
                stop=stop,
            )
        show_result(result, as_json)
        return
    if name is not None:
        raise UsageError(
            "`--name` must be given with one space only.", hint="several studies are named by their spaces"
        )
    with watched_together(resolve_uri(tracking_uri)) as (views, stop):
        results = launch_together(
            spaces,
            address=address,
            runtime_env=runtime_env,
            tracking_uri=tracking_uri,
            storage=storage,
            overrides=changes,
            views=views,
            stop=stop,
        )
    show_results(results, as_json)
