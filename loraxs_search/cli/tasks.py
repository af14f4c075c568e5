"""loraxs-search tasks ls|show|preview"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraxs_search.cli._completion import well_known_tasks, well_known_tasks_and_spaces
from loraxs_search.cli._output import JsonOption, drawing_stream, emit, plain, print_table
from loraxs_search.errors import UsageError, counted
from loraxs_search.records import Split

if TYPE_CHECKING:
    from loraxs_search.records import BaseModelRef, Task
    from loraxs_search.search_space import CatalogueEntry
    from loraxs_search.tasks.prepared import Preview

app = typer.Typer(
    help="Well-known tasks, and how a task's rows look to the model.", no_args_is_help=True, rich_markup_mode=None
)
_COLUMNS = ("task", "kind", "metric", "data", "about")


@app.command("ls")
def _ls(as_json: JsonOption = False) -> None:
    """List the well-known tasks, which a space names by `task: NAME`.

    Their rows come from the Hugging Face hub. This project has read the pages of these datasets, but never loaded them.

    Example: loraxs-search tasks ls
    """
    from loraxs_search.search_space import catalogue_entry
    from loraxs_search.shipped_spaces import shipped_tasks

    facts = [_facts(catalogue_entry(name)) for name in shipped_tasks()]

    def show() -> None:
        rows = [(it["name"], it["kind"], it["metrics"][0], it["data"], it["about"]) for it in facts]
        print_table(_COLUMNS, rows)

    emit(as_json, facts, show)


@app.command("show")
def _show(
    name: Annotated[str, typer.Argument(help="Name of a well-known task.", autocompletion=well_known_tasks)],
    as_json: JsonOption = False,
) -> None:
    """Print a well-known task as a space file would have it, with all that is known of it.

    Example: loraxs-search tasks show gsm8k
    """
    from loraxs_search.search_space import catalogue_entry

    entry = catalogue_entry(name)
    emit(as_json, _facts(entry) | {"task": entry.section}, lambda: print(entry.text, end=""))


@app.command("preview")
def _preview(
    source: Annotated[
        str,
        typer.Argument(
            help="A well-known task, a space file, or a shipped space.",
            metavar="NAME|SPACE",
            autocompletion=well_known_tasks_and_spaces,
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="Whose tokenizer to use: a base model's id, a folder, or a space; by default the space's own.",
            metavar="ID",
        ),
    ] = None,
    split: Annotated[Split, typer.Option("--split", help="Missing ones are cut from the training rows.")] = "train",
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows to show.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Print the first rows of a task as the model sees them.

    Learnt tokens are marked: green on a terminal, in [[ ]] elsewhere. Special tokens are written out. Below each row is
    what an answer is compared with. The last lines count tokens, and rows that were cut to keep `max_length`.

    Example: loraxs-search tasks preview movie_reviews --rows 2
    """
    from loraxs_search.base_model import load_tokenizer, locate
    from loraxs_search.tasks.prepared import preview as previewed

    task, ref = _task_and_base(source, base)
    shown = previewed(task, load_tokenizer(locate(ref)), split=split, num_rows=rows)
    emit(as_json, shown, lambda: _print(shown))


def _task_and_base(source: str, base: str | None) -> tuple[Task, BaseModelRef]:
    from loraxs_search.search_space import catalogue_task, load_space
    from loraxs_search.shipped_spaces import shipped_tasks

    if source not in shipped_tasks():
        space = load_space(source)
        return space.task, space.base_model if base is None else _base(base)
    if base is None:
        raise UsageError(
            f"`--base` must be given: {source} is a well-known task, which names no base model.",
            hint="give a base model's id, a folder, or a space that has one, such as `--base movie_reviews`",
        )
    return catalogue_task(source), _base(base)


def _base(name: str) -> BaseModelRef:
    """Return the base of a space, or the one that `name` is the id of."""
    from loraxs_search.records import BaseModelRef
    from loraxs_search.search_space import load_space
    from loraxs_search.shipped_spaces import shipped_spaces

    if name in shipped_spaces() or name.endswith((".yaml", ".yml")):
        return load_space(name).base_model
    return BaseModelRef(name)


def _facts(entry: CatalogueEntry) -> dict[str, Any]:
    section, (about, *notes) = entry.section, entry.comments
    place = "/".join(filter(None, (section["data"]["hub"], section["data"].get("config"))))
    return {key: section[key] for key in ("name", "kind", "metrics")} | {"data": place, "about": about, "notes": notes}


def _print(shown: Preview) -> None:
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for number, row in enumerate(shown.rows, start=1):
        texts = ((part, plain(part.text)) for part in row.parts)
        marked = (_marked(text, coloured) if part.learnt else text for part, text in texts)
        learnt = f", {row.num_learnt} learnt" if row.num_learnt else ""
        print(f"--- {shown.split} row {number}: {counted(row.num_tokens, 'token')}{learnt}{', cut' if row.cut else ''}")
        print("".join(marked), file=drawing_stream(sys.stdout))
        print(f"--- answer: {row.answer}\n")
    print(f"{shown.split}: {counted(shown.num_rows, 'row')}")
    learnt = f", {shown.mean_learnt:.1f} of them learnt" if shown.mean_learnt else ""
    counts = f"mean {shown.mean_tokens:.1f}{learnt}, most {shown.most_tokens}"
    print(f"tokens of the first {counted(shown.num_counted, 'row')}: {counts}")
    if shown.num_cut is not None:
        print(f"cut to max_length: {shown.num_cut:,} of these")


def _marked(text: str, coloured: bool) -> str:
    return typer.style(text, fg="green", bold=True) if coloured else f"[[{text}]]"
