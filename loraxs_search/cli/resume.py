"""loraxs-search resume STUDY"""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._output import AddressOption, JsonOption
from loraxs_search.cli._search import show_result, watched


def command(
    study: Annotated[str, typer.Argument(help="Name of the study.")],
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a search that was interrupted or killed."""
    from loraxs_search.search import resume

    with watched() as view:
        result = resume(study, address=address, view=view)
    show_result(result, as_json)
