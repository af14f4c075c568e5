"""loraxs-search pull NAME"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from loraxs_search.cli._completion import tasks
from loraxs_search.cli._output import BaseOption, JsonOption, TrackingOption, emit


def command(
    name: Annotated[str, typer.Argument(help="TASK (its champion), TASK@alias or TASK:version.", autocompletion=tasks)],
    base: BaseOption = None,
    form: Annotated[
        Literal["native", "lora", "merged", "gguf"],
        typer.Option("--format", help="The adapter as trained, plain LoRA, a whole model, or a file for llama.cpp."),
    ] = "native",
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="Pad --format lora to this rank with zeros.", metavar="N")
    ] = None,
    dtype: Annotated[
        Literal["float32"] | None, typer.Option("--dtype", help="Type of --format merged; else the base's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Copy it to this folder, new or empty.", metavar="FOLDER")
    ] = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a promoted adapter and print its folder.

    Before the folder appears, the manifest is checked against the registry, and every file against the manifest. A pull
    that was cut short continues where it was. If the registry cannot be reached, you get the adapter that this name
    last gave on this machine, with a notice.

    PEFT loads the folder: `import loraxs_search, peft; peft.PeftModel.from_pretrained(base, folder)`. Or let
    `loraxs_search.load_adapter` find the base. On such a model, `merge_and_unload()` returns a plain model, and
    `add_weighted_adapter(names, weights, "sum")` adds up adapters without heads exactly, since all share one basis.

    Formats: `native` is R and head, as trained. `merged` is the whole model with its tokenizer. A base in bfloat16
    rounds small updates away: you get a warning, and --dtype float32 keeps them. `lora` is exactly the same function as
    plain LoRA, and larger: r (in + out) numbers for each layer instead of r x r. It comes with the tokenizer, and its
    README.md has the lines that load it with PEFT alone, head and labels included. --rank N fills it up with zeros, for
    a server that wants one rank for all adapters; N must be at least the adapter's own rank.

    vLLM loads `lora` folders only of bases that it adapts, and only without a trained head: those of language models,
    such as a text-generation task trains. `gguf` is the same for llama.cpp, adapter.gguf, beside a Modelfile with which
    Ollama asks as in training; it needs the base as a GGUF file.

    Bases: --base NAME takes the end of a base's id. If several bases end alike, write ORGANISATION/NAME: an adapter of
    another base is then refused.

    R fits only the weights that it was trained on. Every load compares them, and refuses others. `pull` also brings the
    SVD factors that this machine lacks, and checks signatures if LORAXS_SIGNING_KEY_FILE is set (cluster/README.md,
    "Factors" and "Signatures").

    Example: loraxs-search pull movie-reviews --format lora
    """
    from loraxs_search.api import pull

    path = pull(name, base=base, form=form, rank=rank, dtype=dtype, out=out, tracking_uri=tracking_uri)
    emit(as_json, {"name": name, "path": str(path), "format": form}, lambda: print(path))
