"""loraxs-search init FILE; spaces ls|show|copy|schema|reference, tasks ls|show: where a space comes from"""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from typer import Argument, Option

from loraxs_search.cli import _out
from loraxs_search.cli._out import print_warnings, tell
from loraxs_search.errors import UsageError
from loraxs_search.home import write_atomic

spaces = typer.Typer(help="The search spaces that come with the package.", no_args_is_help=True, rich_markup_mode=None)


@spaces.command("ls")
def _spaces_ls(as_json: _out.JsonOption = False) -> None:
    """List the shipped spaces.

    Example: loraxs-search spaces ls
    """
    from loraxs_search.home import spaces as shipped

    known = list(shipped().items())
    columns = ("space", "about")
    _out.emit(as_json, [dict(zip(columns, each, strict=True)) for each in known], _out.table(columns, known))


@spaces.command("bases")
def _bases(as_json: _out.JsonOption = False) -> None:
    """List the base models that a package index has, so that no model hub is needed.

    `init` takes the one that suits your rows among those that are installed.

    Example: loraxs-search spaces bases
    """
    from loraxs_search.base_model.locate import KNOWN_PACKAGES

    columns = ("base", "use", "megabytes", "installed", "install")
    rows = [
        (id_, "writes" if it.writes else "classifies", it.megabytes, "yes" if it.is_installed else "no", it.install)
        for id_, it in KNOWN_PACKAGES.items()
    ]
    facts = [dict(zip(columns, each, strict=True)) for each in rows]
    _out.emit(as_json, facts, _out.table(columns, [tuple(map(str, each)) for each in rows]))


@spaces.command("show")
def _spaces_show(name: _out.ShippedSpaceArgument) -> None:
    """Print a shipped space.

    Example: loraxs-search spaces show movie_reviews
    """
    from loraxs_search.home import shipped_space_path

    print(shipped_space_path(name).read_text(), end="")


@spaces.command("copy")
def _copy(
    name: _out.ShippedSpaceArgument,
    target: Path | None = Argument(None, help="File to write; default NAME.yaml here."),
) -> None:
    """Copy a shipped space to a file of yours.

    It keeps the comments and makes the paths of data files absolute, so the copy works anywhere.

    Example: loraxs-search spaces copy movie_reviews mine.yaml
    """
    from loraxs_search.home import SHIPPED, shipped_space_path

    shipped = shipped_space_path(name)
    path = target or Path(f"{shipped.stem}.yaml")
    if path.exists():
        raise UsageError(f"`target` must not exist, but {path} does.", hint="give another file name")
    # Data files, and the schema for editors, are found from any folder.
    text = re.sub(
        r"(?m)^([^#\n]*: )(data/[\w./-]+)",
        lambda found: found[1] + json.dumps(str(SHIPPED / found[2]), ensure_ascii=False),
        shipped.read_text(encoding="utf-8"),
    )
    write_atomic(path, text.replace("$schema=", f"$schema={SHIPPED}/", 1))
    print(path)


@spaces.command("schema")
def _schema() -> None:
    """Print the JSON Schema of a space file, with which editors complete and check it.

    It knows the methods, kinds and schedulers that are installed here. The line at the head of a shipped space leads to
    the file of it that comes with the package; `spaces copy` makes that path absolute.

    Example: loraxs-search spaces schema > space.schema.json
    """
    from loraxs_search.search_space.schema import schema_text

    print(schema_text(), end="")


@spaces.command("reference")
def _reference() -> None:
    """Print every key of a space file with its type, default and meaning, as a page of Markdown.

    It knows the kinds, methods, samplers and schedulers that are installed here.

    Example: loraxs-search spaces reference
    """
    from loraxs_search.search_space.schema import reference_text

    print(reference_text(), end="")


# ---- tasks -----------------------------------------------------------------------------------------------------------
tasks = typer.Typer(help="Well-known tasks.", no_args_is_help=True, rich_markup_mode=None)


@tasks.command("ls")
def _tasks_ls(as_json: _out.JsonOption = False) -> None:
    """List the well-known tasks, which a space names by `task: NAME`.

    Their rows come from the Hugging Face hub. This project has read the pages of these datasets, but never loaded them.

    Example: loraxs-search tasks ls
    """
    from loraxs_search.home import shipped_tasks
    from loraxs_search.search_space.sections import catalogue_entry

    facts = [_facts(*catalogue_entry(name)) for name in shipped_tasks()]
    rows = [(it["name"], it["kind"], it["metrics"][0], it["data"], it["about"]) for it in facts]
    _out.emit(as_json, facts, _out.table(("task", "kind", "metric", "data", "about"), rows))


@tasks.command("show")
def _tasks_show(
    name: str = Argument(help="Name of a well-known task."),
    as_json: _out.JsonOption = False,
) -> None:
    """Print a well-known task as a space file would have it, with all that is known of it.

    Example: loraxs-search tasks show gsm8k
    """
    from loraxs_search.search_space.sections import catalogue_entry

    text, section = catalogue_entry(name)
    _out.emit(as_json, _facts(text, section) | {"task": section}, text.rstrip("\n"))


def _facts(text: str, section: dict[str, Any]) -> dict[str, Any]:
    """Return what the comments of a well-known task say (what it is in a line, then its pages, rows and notes)."""
    about, *notes = [line[2:] for line in text.splitlines() if line.startswith("# ")]
    place = "/".join(filter(None, (section["data"]["hub"], section["data"].get("config"))))
    return {key: section[key] for key in ("name", "kind", "metrics")} | {"data": place, "about": about, "notes": notes}


def init(  # noqa: PLR0913, PLR0917  # each an option
    data: str = Argument(help="Your rows: a .csv, .tsv, .jsonl, .json, .parquet or .conll file."),
    out: Path | None = Option(None, help="File to write; default NAME.yaml here."),
    name: str | None = Option(
        None, help="Name of the task; default: that of the file, or of the folder of a train.csv."
    ),
    kind: str | None = Option(
        None,
        help="sequence-classification, ordinal, multi-label, regression, token-classification, text-generation or"
        " multiple-choice; default: guessed.",
    ),
    text: str | None = Option(None, help="Column with texts; several with commas."),
    label: str | None = Option(None, help="Column with answers."),
    labels: str | None = Option(None, help="All classes, with commas, in id order."),
    metric: str | None = Option(None, help="What the search goes by."),
    base: str | None = Option(None, help="Base model: a hub id or a folder; default: of those installed, see below."),
    max_length: int | None = Option(None, help="Tokens of a row.", min=4),
    drop_empty: bool = Option(
        False, "--drop-empty", help="Leave out rows without a text or an answer; the file stays."
    ),
    test: str | None = Option(None, help="A file of test rows; default: some of yours."),
    question: str | None = Option(
        None, help="What the task answers, such as 'Is this spam?': `serve` finds it by that."
    ),
    force: bool = Option(False, "--force", help="Overwrite the file of --out."),
) -> None:
    """Write a first space for your rows.

    It guesses the separator, the encoding, and which columns hold texts and answers. From these it guesses the kind of
    task, the classes, the metrics and `max_length`. What cannot be known is asked for on a terminal; elsewhere, an
    error names the option that says it.

    It takes the base model that is installed (`spaces bases` lists them). Of several, it fits a linear model to the
    outputs of each on up to 500 training rows, and proposes the best for its work; `--base` names one instead. Where a
    tenth of the rows is few, it cross-validates what it proposes on all of them, for up to 90 s; Ctrl-C skips that.

    On a terminal, Enter takes the answer in square brackets. The file starts with a line for editors, which leads to
    the schema that came with this program.

    Rows that lack a text or an answer, and labels that look misspelt, are errors with their lines. `--drop-empty` makes
    a copy without such rows beside the space, which reads that copy: your file is not changed.

    Files beside `train.csv` that are called test, or validation, valid, val or dev, are taken for these rows.

    Example: loraxs-search init reviews.csv
    """
    from loraxs_search.scaffold.draft import draft_space
    from loraxs_search.scaffold.roles import Choices, UndecidedError
    from loraxs_search.tasks.kinds import kind_of

    named = (name, kind, _split(text), label, _split(labels), metric, base, max_length)
    choices = Choices(*named, drop_empty=drop_empty, test=test, question=question)
    known, open_question, on_terminal = choices, None, sys.stdin.isatty() and sys.stderr.isatty()
    while True:  # on a terminal, what is not known is asked for, again where an answer does not fit
        try:
            draft = draft_space(data, out, choices, force=force)
            break
        except UndecidedError as undecided:
            if not on_terminal:
                raise
            known, open_question = choices, undecided
            tell(undecided.message)
        except UsageError as error:
            if open_question is None:
                raise
            tell(f"error: {error.message}")
        possible = f" ({', '.join(open_question.possible)})" if open_question.possible else ""
        default = f" [{open_question.default}]" if open_question.default else ""  # what Enter stands for
        print(f"{open_question.option}{possible}{default}: ", end="", file=sys.stderr, flush=True)
        if not (answer := sys.stdin.readline()):  # typer's own prompt writes to stdout, which is only the file's name
            raise typer.Abort
        said = answer.strip() or open_question.default
        value: Any = (_split(said) if open_question.option in ("text", "labels") else said) or None
        choices = replace(known, **dict[str, Any]({open_question.option: value}))
    width = max(map(len, draft.guesses))
    for key, guess in draft.guesses.items():
        tell(f"{key:<{width}}  {guess}")
    print_warnings(draft.warnings)
    if on_terminal and question is None and kind_of(draft.task).has_shares:
        print("question that the task answers, for decisions [none]: ", end="", file=sys.stderr, flush=True)
        if said := sys.stdin.readline().strip():
            draft = draft_space(
                data, out, replace(choices, question=said, base=base or draft.base_model.id), force=True
            )
    path = str(Path(draft.source))  # without `./`
    print(path)
    written = shlex.quote(path)
    tell(f"next: loraxs-search check {written} --data\nthen: loraxs-search launch {written}")


def _split(given: str | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(part.strip() for part in given.split(",") if part.strip())
