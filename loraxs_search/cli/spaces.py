"""loraxs-search spaces ls|show|copy|schema|reference"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraxs_search.cli._output import JsonOption, ShippedSpaceArgument, emit, print_table
from loraxs_search.errors import UsageError
from loraxs_search.home import write_atomic

app = typer.Typer(help="The search spaces that come with the package.", no_args_is_help=True, rich_markup_mode=None)


@app.command("ls")
def _ls(as_json: JsonOption = False) -> None:
    """List the shipped spaces.

    Example: loraxs-search spaces ls
    """
    from loraxs_search.shipped_spaces import spaces

    known = spaces()
    emit(as_json, known, lambda: print_table(("space", "about"), [(it.space, it.about) for it in known]))


@app.command("show")
def _show(name: ShippedSpaceArgument) -> None:
    """Print a shipped space.

    Example: loraxs-search spaces show movie_reviews
    """
    from loraxs_search.shipped_spaces import shipped_space_path

    print(shipped_space_path(name).read_text(), end="")


@app.command("copy")
def _copy(
    name: ShippedSpaceArgument,
    target: Annotated[Path | None, typer.Argument(help="File to write; default NAME.yaml here.")] = None,
) -> None:
    """Copy a shipped space to a file of yours.

    It keeps the comments and makes the paths of data files absolute, so the copy works anywhere.

    Example: loraxs-search spaces copy movie_reviews mine.yaml
    """
    from loraxs_search.search_space.document import portable_text
    from loraxs_search.shipped_spaces import shipped_space_path

    path = target or Path(f"{shipped_space_path(name).stem}.yaml")
    if path.exists():
        raise UsageError(f"`target` must not exist, but {path} does.", hint="give another file name")
    write_atomic(path, portable_text(shipped_space_path(name)))
    print(path)


@app.command("schema")
def _schema() -> None:
    """Print the JSON Schema of a space file, with which editors complete and check it.

    It knows the methods, kinds and schedulers that are installed here. The line at the head of a shipped space leads to
    the file of it that comes with the package; `spaces copy` makes that path absolute.

    Example: loraxs-search spaces schema > space.schema.json
    """
    from loraxs_search.search_space.schema import schema_text

    print(schema_text(), end="")


@app.command("reference")
def _reference() -> None:
    """Print every key of a space file with its type, default and meaning, as a page of Markdown.

    It knows the kinds, methods, samplers and schedulers that are installed here.

    Example: loraxs-search spaces reference
    """
    from loraxs_search.search_space.schema import reference_text

    print(reference_text(), end="")
