"""loraxs-search tasks ls|show"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraxs_search.cli._output import JsonOption, emit, print_table

if TYPE_CHECKING:
    from loraxs_search.search_space.task import CatalogueEntry

app = typer.Typer(help="Well-known tasks.", no_args_is_help=True, rich_markup_mode=None)
_COLUMNS = ("task", "kind", "metric", "data", "about")


@app.command("ls")
def _ls(as_json: JsonOption = False) -> None:
    """List the well-known tasks, which a space names by `task: NAME`.

    Their rows come from the Hugging Face hub. This project has read the pages of these datasets, but never loaded them.

    Example: loraxs-search tasks ls
    """
    from loraxs_search.search_space.task import catalogue_entry
    from loraxs_search.shipped_spaces import shipped_tasks

    facts = [_facts(catalogue_entry(name)) for name in shipped_tasks()]

    def show() -> None:
        rows = [(it["name"], it["kind"], it["metrics"][0], it["data"], it["about"]) for it in facts]
        print_table(_COLUMNS, rows)

    emit(as_json, facts, show)


@app.command("show")
def _show(
    name: Annotated[str, typer.Argument(help="Name of a well-known task.")],
    as_json: JsonOption = False,
) -> None:
    """Print a well-known task as a space file would have it, with all that is known of it.

    Example: loraxs-search tasks show gsm8k
    """
    from loraxs_search.search_space.task import catalogue_entry

    entry = catalogue_entry(name)
    emit(as_json, _facts(entry) | {"task": entry.section}, lambda: print(entry.text, end=""))


def _facts(entry: CatalogueEntry) -> dict[str, Any]:
    section, (about, *notes) = entry.section, entry.comments
    place = "/".join(filter(None, (section["data"]["hub"], section["data"].get("config"))))
    return {key: section[key] for key in ("name", "kind", "metrics")} | {"data": place, "about": about, "notes": notes}
