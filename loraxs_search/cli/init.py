"""loraxs-search init FILE"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from typer import Argument, Option

from loraxs_search.cli._out import print_warnings, tell
from loraxs_search.errors import UsageError


def init(  # noqa: PLR0913, PLR0917  # each an option
    data: str = Argument(help="Your rows: a .csv, .tsv, .jsonl, .json, .parquet or .conll file."),
    out: Path | None = Option(None, help="File to write; default NAME.yaml here."),
    name: str | None = Option(
        None, help="Name of the task; default: that of the file, or of the folder of a train.csv."
    ),
    kind: str | None = Option(
        None,
        help="sequence-classification, regression, token-classification, text-generation or multiple-choice;"
        " default: guessed.",
    ),
    text: str | None = Option(None, help="Column with texts; several with commas."),
    label: str | None = Option(None, help="Column with answers."),
    labels: str | None = Option(None, help="All classes, with commas, in id order."),
    metric: str | None = Option(None, help="What the search goes by."),
    base: str | None = Option(None, help="Base model: a hub id or a folder."),
    max_length: int | None = Option(None, help="Tokens of a row.", min=4),
    drop_empty: bool = Option(
        False, "--drop-empty", help="Leave out rows without a text or an answer; the file stays."
    ),
    test: str | None = Option(None, help="A file of test rows; default: a tenth of yours."),
    force: bool = Option(False, "--force", help="Overwrite the file of --out."),
) -> None:
    """Write a first space for your rows.

    It guesses the separator, the encoding, and which columns hold texts and answers. From these it guesses the kind of
    task, the classes, the metrics and `max_length`. It takes a base model that is at hand. What cannot be known is
    asked for on a terminal; elsewhere, an error names the option that says it. Nothing is trained.

    On a terminal, Enter takes the answer in square brackets. The file starts with a line for editors, which leads to
    the schema that came with this program.

    Rows that lack a text or an answer, and labels that look misspelt, are errors with their lines. `--drop-empty` makes
    a copy without such rows beside the space, which reads that copy: your file is not changed.

    Files beside `train.csv` that are called test, or validation, valid, val or dev, are taken for these rows.

    Example: loraxs-search init reviews.csv
    """
    from loraxs_search.scaffold.draft import draft_space
    from loraxs_search.scaffold.roles import Choices, UndecidedError

    choices = Choices(
        name, kind, _split(text), label, _split(labels), metric, base, max_length, drop_empty=drop_empty, test=test
    )
    known, question = choices, None
    while True:  # on a terminal, what is not known is asked for, again where an answer does not fit
        try:
            draft = draft_space(data, out, choices, force=force)
            break
        except UndecidedError as undecided:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise
            known, question = choices, undecided
            tell(question.message)
        except UsageError as error:
            if question is None:
                raise
            tell(f"error: {error.message}")
        possible = f" ({', '.join(question.possible)})" if question.possible else ""
        default = f" [{question.default}]" if question.default else ""  # what Enter stands for
        print(f"{question.option}{possible}{default}: ", end="", file=sys.stderr, flush=True)
        if not (answer := sys.stdin.readline()):  # typer's own prompt writes to stdout, which is only the file's name
            raise typer.Abort
        said = answer.strip() or question.default
        value: Any = (_split(said) if question.option in ("text", "labels") else said) or None
        choices = replace(known, **dict[str, Any]({question.option: value}))
    width = max(map(len, draft.guesses))
    for key, guess in draft.guesses.items():
        tell(f"{key:<{width}}  {guess}")
    print_warnings(draft.warnings)
    path = str(Path(draft.source))  # without `./`
    print(path)
    written = shlex.quote(path)
    tell(f"next: loraxs-search check {written} --data\nthen: loraxs-search launch {written}")


def _split(given: str | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(part.strip() for part in given.split(",") if part.strip())
