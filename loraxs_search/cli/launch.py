"""loraxs-search launch SPACE"""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._output import AddressOption, JsonOption, SetOption, TrackingOption
from loraxs_search.cli._search import show_result, watched


def command(
    space: Annotated[str, typer.Argument(help="A space file, or the name of a shipped space.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the study; default: space and time.")] = None,
    address: AddressOption = None,
    tracking_uri: TrackingOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search a space: train trials, record them in MLflow, score the best on held-out rows."""
    from loraxs_search.search import launch

    with watched() as view:
        result = launch(
            space,
            name=name,
            address=address,
            tracking_uri=tracking_uri,
            overrides=tuple(overrides or ()),
            view=view,
        )
    show_result(result, as_json)
