"""loraxs-search pull NAME"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from loraxs_search.cli._output import BaseOption, JsonOption, TrackingOption, emit


def command(
    name: Annotated[str, typer.Argument(help="TASK (its champion), TASK@alias or TASK:version.")],
    base: BaseOption = None,
    form: Annotated[
        Literal["native", "lora", "merged"],
        typer.Option("--format", help="As it was trained, as plain LoRA, or a whole model."),
    ] = "native",
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Pad --format lora to this rank with zeros.", metavar="N")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Copy it to this folder, new or empty.", metavar="FOLDER")
    ] = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a promoted adapter and print its folder.

    Every file is checked against the manifest, and the manifest against the registry, before the folder appears. PEFT
    loads the folder: `import loraxs_search, peft; peft.PeftModel.from_pretrained(base, folder)`.
    """
    from loraxs_search.api import pull

    path = pull(name, base=base, form=form, rank=rank, out=out, tracking_uri=tracking_uri)
    emit(as_json, {"name": name, "path": str(path), "format": form}, lambda: print(path))
