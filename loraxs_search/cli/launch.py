"""loraxs-search launch SPACE"""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._output import AddressOption, JsonOption, SetOption, SpaceArgument, TrackingOption
from loraxs_search.cli._search import show_result, watched
from loraxs_search.mlflow_uri import resolve_uri


def command(
    space: SpaceArgument,
    name: Annotated[str | None, typer.Option("--name", help="Name of the study; default: space and time.")] = None,
    address: AddressOption = None,
    tracking_uri: TrackingOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search a space; the best trials are scored on held-out rows.

    Nothing is written before the space, the base, the data, MLflow and Ray are seen to be in order. Ctrl-C ends the
    search in order (exit code 130), a second one at once; `loraxs-search resume` goes on after either, and after a
    kill. Prints the leaderboard, best first.
    """
    from loraxs_search.search import launch

    with watched(resolve_uri(tracking_uri)) as view:
        result = launch(
            space,
            name=name,
            address=address,
            tracking_uri=tracking_uri,
            overrides=tuple(overrides or ()),
            view=view,
        )
    show_result(result, as_json)
