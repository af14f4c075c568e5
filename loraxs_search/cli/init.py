"""loraxs-search init FILE"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraxs_search.cli._output import print_warnings
from loraxs_search.errors import UsageError

if TYPE_CHECKING:
    from loraxs_search.scaffold.draft import Draft
    from loraxs_search.scaffold.roles import Choices, UndecidedError

_LISTS = ("text", "labels")


def init(  # noqa: PLR0913, PLR0917  # each an option
    data: Annotated[
        str,
        typer.Argument(
            help="Your rows: a .csv, .tsv, .jsonl, .json, .parquet or .conll file, or a hub dataset: OWNER/NAME."
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default NAME.yaml here.")] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the task; default: that of the file, or of the folder of a train.csv."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="sequence-classification, regression, token-classification, text-generation or multiple-choice;"
            " default: guessed.",
        ),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="Column with texts; several with commas.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Column with answers.")] = None,
    labels: Annotated[str | None, typer.Option("--labels", help="All classes, with commas, in id order.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="What the search goes by.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="Base model: a hub id or a folder.")] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="Tokens of a row.", min=4)] = None,
    config: Annotated[str | None, typer.Option("--config", help="Configuration of a hub dataset.")] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Split of a hub dataset to train on; default: train.")
    ] = None,
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Leave out rows without a text or an answer; the file stays.")
    ] = False,
    renamed: Annotated[
        list[str] | None, typer.Option("--map", help="Read a label as another one; may be repeated.", metavar="OLD=NEW")
    ] = None,
    test: Annotated[str | None, typer.Option("--test", help="A file of test rows; default: a tenth of yours.")] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Names of all columns, with commas, of a .csv without a header.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file of --out.")] = False,
) -> None:
    """Write a first space for your rows.

    It guesses the separator, the encoding, and which columns hold texts and answers. From these it guesses the kind of
    task, the classes, the metrics and `max_length`. It takes a base model that is at hand. What cannot be known is
    asked for on a terminal; elsewhere, an error names the option that says it. Nothing is trained.

    On a terminal, Enter takes the answer in square brackets. The file starts with a line for editors, which leads to
    the schema that came with this program.

    Rows that lack a text or an answer, and labels that look misspelt, are errors with their lines. `--drop-empty` and
    `--map` take care of them in a copy beside the space, which reads that copy: your file is not changed.

    Files beside `train.csv` that are called test, or validation, valid, val or dev, are taken for these rows.

    Example: loraxs-search init reviews.csv
    """
    from loraxs_search.scaffold.draft import task_name
    from loraxs_search.scaffold.roles import Choices

    choices = Choices(
        name,
        kind,
        _split(text),
        label,
        _split(labels),
        metric,
        base,
        max_length,
        config,
        split,
        drop_empty,
        _pairs(renamed),
        test,
        _split(columns),
    )
    path = out or Path(f"{task_name(data, choices)}.yaml")
    if path.exists() and not force:
        raise UsageError(
            f"`--out` must not exist, but {path} does.", hint="--force overwrites it; --out names another file"
        )
    draft = _drafted(data, path, choices)
    draft.save(path, force=force)
    _show(draft, path)


def _drafted(data: str, path: Path, choices: Choices) -> Draft:
    """Return the draft; on a terminal, what is not known is asked for, again where an answer does not fit."""
    from loraxs_search.scaffold.draft import draft_space
    from loraxs_search.scaffold.roles import UndecidedError

    known, question = choices, None
    while True:
        try:
            return draft_space(data, path, choices)
        except UndecidedError as undecided:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise
            known, question = choices, undecided
            print(question.message, file=sys.stderr)
        except UsageError as error:
            if question is None:
                raise
            print(f"error: {error.message}", file=sys.stderr)
        choices = _asked(question, known)


def _asked(question: UndecidedError, choices: Choices) -> Choices:
    """Return the choices with the answer to a question; an empty one is its default, if it has one."""
    known = f" ({', '.join(question.possible)})" if question.possible else ""
    known += f" [{question.default}]" if question.default else ""
    print(f"{question.option}{known}: ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()  # typer's own prompt writes to stdout too, which is only the file's name
    if not answer:
        raise typer.Abort
    said = answer.strip() or question.default
    value: Any = (_split(said) if question.option in _LISTS else said) or None
    return replace(choices, **{question.option: value})


def _pairs(given: list[str] | None) -> tuple[tuple[str, str], ...]:
    pairs = [tuple(part.strip() for part in each.partition("=")[::2]) for each in given or ()]
    if wrong := [each for each, (old, new) in zip(given or (), pairs, strict=True) if not (old and new)]:
        raise UsageError(f"`--map` must be OLD=NEW, but got {wrong[0]!r}.", hint='as in --map "billing=Billing"')
    return tuple((old, new) for old, new in pairs)


def _split(given: str | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(part.strip() for part in given.split(",") if part.strip())


def _show(draft: Draft, path: Path) -> None:
    width = max(map(len, draft.guesses))
    for name, value in draft.guesses.items():
        print(f"{name:<{width}}  {value}", file=sys.stderr)
    print_warnings(draft.warnings)
    print(path)
    print(f"next: loraxs-search check {shlex.quote(str(path))} --data", file=sys.stderr)
    print(f"then: loraxs-search launch {shlex.quote(str(path))}", file=sys.stderr)
