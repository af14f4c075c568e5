"""loraxs-search spaces ls|show|copy|schema|reference, tasks ls|show: what comes with the package"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import typer
from typer import Argument

from loraxs_search.cli import _out
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
