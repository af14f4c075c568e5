"""loraxs-search init FILE"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraxs_search.errors import UsageError

if TYPE_CHECKING:
    from loraxs_search.drafts import Choices, Draft, UndecidedError

_LISTS = ("text", "labels")


def command(  # noqa: PLR0913, PLR0917  # each an option
    data: Annotated[Path, typer.Argument(help="Your rows: a .csv, .tsv, .jsonl, .json or .parquet file.")],
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default NAME.yaml here.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the task; default: that of the file.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", help="sequence-classification, regression, text-generation or multiple-choice; default: guessed."
        ),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="Column with texts; several with commas.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Column with answers.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="All classes, with commas, in id order.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="What the search goes by.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="Base model: a hub id or a folder.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="Tokens of a row.", min=4)] = None,
) -> None:
    """Write a first space for your rows.

    It guesses the separator, the encoding, and which columns hold texts and answers. From these it guesses the kind of
    task, the classes, the metrics and `max_length`. It takes a base model that is at hand. What cannot be known is
    asked for on a terminal; elsewhere, an error names the option that says it. Nothing is trained.

    A file that is not UTF-8, or has another separator than its ending says, is not changed: a plain copy is written
    beside the space.

    Example: loraxs-search init reviews.csv
    """
    from loraxs_search.drafts import Choices
    from loraxs_search.search_space import load_space

    columns, classes = (_split(given) for given in (text, labels))
    choices = Choices(name, kind, columns, label, classes, metric, base, max_length)
    folder = (out.parent if out else Path()).absolute()
    draft = _drafted(data, folder, choices)
    path = out or Path(f"{draft.name}.yaml")
    if path.exists():
        raise UsageError(f"`--out` must not exist, but {path} does.", hint="give another file with --out, or remove it")
    draft.write(path)
    load_space(str(path) if path.is_absolute() else f"./{path}")
    _show(draft, path)


def _drafted(data: Path, folder: Path, choices: Choices) -> Draft:
    """Return the draft; on a terminal, what is not known is asked for."""
    from loraxs_search.drafts import UndecidedError, draft_space

    while True:
        try:
            return draft_space(data, folder, choices)
        except UndecidedError as question:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise
            choices = _asked(question, choices)


def _asked(question: UndecidedError, choices: Choices) -> Choices:
    print(question.message, file=sys.stderr)
    known = f" ({', '.join(question.possible)})" if question.possible else ""
    print(f"{question.option}{known}: ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()  # typer's own prompt writes to stdout too, which is the file's name alone
    if not answer:
        raise typer.Abort
    said: Any = _split(answer) if question.option in _LISTS else answer.strip()
    return replace(choices, **{question.option: said or None})


def _split(given: str | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(part.strip() for part in given.split(",") if part.strip())


def _show(draft: Draft, path: Path) -> None:
    width = max(map(len, draft.guesses))
    for name, value in draft.guesses.items():
        print(f"{name:<{width}}  {value}", file=sys.stderr)
    for warning in draft.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(path)
    print(f"next: loraxs-search launch {path}", file=sys.stderr)
