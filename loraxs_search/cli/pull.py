"""loraxs-search pull NAME"""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._output import JsonOption, TrackingOption, emit


def command(
    name: Annotated[str, typer.Argument(help="TASK (its champion), TASK@alias or TASK:version.")],
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a promoted adapter and print its folder.

    Every file is checked against the manifest, and the manifest against the registry, before the folder appears. PEFT
    loads the folder: `import loraxs_search, peft; peft.PeftModel.from_pretrained(base, folder)`.
    """
    from loraxs_search.api import pull

    path = pull(name, tracking_uri=tracking_uri)
    emit(as_json, {"name": name, "path": str(path)}, lambda: print(path))
