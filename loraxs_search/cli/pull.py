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
        typer.Option("--format", help="The adapter as trained, plain LoRA, or a whole model."),
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

    Before the folder appears, the manifest is checked against the registry, and every file against the manifest. A pull
    that was cut short continues where it was. If the registry is away, you get the adapter that the name meant last
    here, with a notice.

    PEFT loads the folder: `import loraxs_search, peft; peft.PeftModel.from_pretrained(base, folder)`. Or let
    `loraxs_search.load_adapter` find the base. On such a model, `merge_and_unload()` returns a plain model, and
    `add_weighted_adapter(names, weights, "sum")` adds up adapters without heads exactly, since all share one basis.

    Formats: `native` is R and head, about 17 KB. `lora` is exactly the same function as plain LoRA; --rank pads it.
    `merged` is the whole model with its tokenizer. vLLM's filesystem resolver takes `lora` if vLLM adapts the base and
    no head is trained. Adapters of a search have a trained head.

    Bases: --base NAME takes the end of a base's id. If several bases end alike, write ORGANISATION/NAME: an adapter of
    another base is then refused.

    Factors: R fits only the factors of the weights that it was trained on. Every load compares the fingerprints of
    these factors. For an adapter of a search it also compares a sample of every other weight below the head.
    `load_adapter`, `predict` and banks compare the digest of the base's weights as well. What does not match is
    refused.

    Two machines may decompose the same weight differently. So the factors of a base are registered once for all its
    adapters (`factors-...` in the MLflow UI), and `pull` brings those that this machine lacks. An adapter from a GPU
    then loads exactly on a CPU. Before their first use, factors are checked against the weights: they must be
    orthonormal, the weight's own singular triplets, and complete. Others are removed, with a message.

    Signatures: set LORAXS_SIGNING_KEY_FILE to a file that your team shares. Then `promote` and `rollback` sign
    (HMAC-SHA256) what a name means: task, alias, version, content, and a number that rises. `pull` refuses an adapter
    that is not signed under the name you asked for, and a number lower than this machine has seen. A machine that pulls
    for the first time cannot know of a newer one. To sign an adapter that has no signature, or one of an older version,
    run `promote STUDY` or `rollback TASK --to N` with the key.
    """
    from loraxs_search.api import pull

    path = pull(name, base=base, form=form, rank=rank, out=out, tracking_uri=tracking_uri)
    emit(as_json, {"name": name, "path": str(path), "format": form}, lambda: print(path))
