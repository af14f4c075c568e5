"""loraxs-search studies ls|show|export|rm, gc"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraxs_search.cli._output import (
    JsonOption,
    StudiesArgument,
    StudyArgument,
    TrackingOption,
    emit,
    print_table,
    print_warnings,
    shown_bytes,
)
from loraxs_search.errors import UsageError
from loraxs_search.paths import seconds_of

if TYPE_CHECKING:
    from loraxs_search.housekeeping import Collected


app = typer.Typer(
    help="The studies of this machine: list, look, export, remove.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("ls")
def _ls(as_json: JsonOption = False) -> None:
    """List all studies, newest first.

    It is the list of `status`, with the size of each and whether records wait for MLflow. --json has the folders.

    Example: loraxs-search studies ls
    """
    from loraxs_search.reports.study_status import study_summaries

    summaries = list(study_summaries(sizes=True))
    columns = ("study", "task", "state", "trials", "created", "bytes", "for MLflow")

    def show() -> None:
        rows = [(*it.cells, shown_bytes(it.num_bytes), "waiting" if it.is_waiting else "-") for it in summaries]
        print_table(columns, rows, right=frozenset({"bytes"}))
        print_warnings([summary.problem for summary in summaries if summary.problem])

    emit(as_json, [asdict(summary) | {"path": str(summary.path)} for summary in summaries], show)


@app.command("show")
def _show(study: StudyArgument, as_json: JsonOption = False) -> None:
    """Show where a study lies, what it takes, and how to open it with other programs.

    Example: loraxs-search studies show reviews
    """
    from loraxs_search.reports.study_status import study_facts

    facts = study_facts(study)

    def show_facts() -> None:
        for name, value in facts.items():
            print(f"{name.replace('_', ' '):<13} {_shown(name, value)}")
        print(f"\ntrials: loraxs-search status {study}", file=sys.stderr)
        print(f"for Optuna Dashboard: loraxs-search studies export {study} --optuna FILE", file=sys.stderr)

    emit(as_json, facts, show_facts)


@app.command("export")
def _export(
    study: StudyArgument,
    optuna: Annotated[Path, typer.Option("--optuna", help="The new file, an Optuna journal.", show_default=False)],
) -> None:
    """Write a study's trials into a file for Optuna's tools.

    `optuna-dashboard FILE` opens it. Changes that you make there are not in the study.

    Example: loraxs-search studies export reviews --optuna reviews.optuna.jsonl
    """
    from loraxs_search.errors import counted
    from loraxs_search.reports.optuna_study import export_optuna

    number = export_optuna(study, optuna)
    print(f"wrote {counted(number, 'trial')} to {optuna}", file=sys.stderr)
    print(f"next: optuna-dashboard {optuna}", file=sys.stderr)


@app.command("rm")
def _rm(
    studies: StudiesArgument,
    runs: Annotated[
        bool, typer.Option("--runs", help="Delete the study's runs in MLflow too; by default MLflow keeps the record.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Even where records still wait for MLflow, which are lost then, where the study's storage does not "
            "answer, or where the study cannot be read.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove studies from this machine.

    Promoted and pulled adapters stay: they need nothing from the study. A study that a search is using is refused, and
    so is one whose records have not reached MLflow. `sync` sends them.

    MLflow keeps the runs. With --runs they are deleted there as in its UI, but for those that registered versions name.
    A copy in a storage stays.

    With --force a study goes although its storage is gone, or its study.json is missing, damaged or of a later version.
    What stays behind is said: runs in MLflow, a copy in the storage.

    Example: loraxs-search studies rm reviews --dry-run
    """
    from loraxs_search.housekeeping import remove_study

    names = list(dict.fromkeys(studies))
    for name in names if len(names) > 1 else ():  # what is wrong with one of them comes before any of them goes
        remove_study(name, runs=runs, force=force, dry_run=True)
    removed = [remove_study(name, runs=runs, force=force, dry_run=dry_run) for name in names]

    def show() -> None:
        for study in removed:
            of_mlflow = "" if study.num_runs is None else f" and {study.num_runs} runs in MLflow"
            verdict = "would be removed" if dry_run else "removed"
            print(f"{study.study}: {verdict}, {shown_bytes(study.num_bytes)}{of_mlflow}")

    emit(as_json, [asdict(study) | {"path": str(study.path)} for study in removed], show)
    for study in removed:
        if study.kept_runs:
            print(f"note: the runs of {', '.join(study.kept_runs)} stay in MLflow", file=sys.stderr)
        if study.storage is not None:
            print(f"note: the copy of {study.study} in {study.storage} stays", file=sys.stderr)
        if study.unasked:
            driver = f"a driver on another machine may still work on {study.study}"
            print(f"warning: {driver}: {study.unasked}", file=sys.stderr)
        if study.unread:
            stays = "its runs in MLflow and a copy in a storage stay, if there are any"
            print(f"warning: {study.study} could not be read; {stays}: {study.unread}", file=sys.stderr)


def _shown(name: str, value: Any) -> str:
    if name == "bytes":
        return ", ".join(f"{part} {shown_bytes(size)}" for part, size in value.items())
    if name == "created":
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    return "-" if value is None else str(value)


def gc(
    older_than: Annotated[
        str, typer.Option("--older-than", help="Only what nobody has used for so long: 12h, 30d.", metavar="TIME")
    ] = "30d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove from LORAXS_HOME what nobody needs any more.

    It considers states of trials of finished studies, SVD factors, unpacked and converted base models, rows and tokens,
    pulled adapters, and what killed processes have left. All of them can be made or fetched again.

    It never removes what a registered version, a study, or a name that was pulled needs, and nothing that a running
    search may use. If MLflow does not answer, factors and base models stay. Studies go with `studies rm`, versions with
    `rm`, and the runs in MLflow with MLflow itself.

    --json lists every item with its path, its bytes and why it stays.

    Example: loraxs-search gc --dry-run --older-than 7d
    """
    from loraxs_search.housekeeping import KINDS, collect

    if (seconds := seconds_of(older_than)) is None:
        raise UsageError(
            f"`--older-than` must be a number with a unit, but got {older_than!r}.", hint="such as 90s, 12h or 30d"
        )
    done = collect(seconds, dry_run=dry_run, tracking_uri=tracking_uri)

    def show() -> None:
        columns = ("what", "items", "bytes", "kept", "bytes kept", "lost")
        rows = [_row(kind.name, kind.loss, [it for it in done if it.kind == kind.name]) for kind in KINDS]
        print_table(columns, rows, right=frozenset(columns[1:-1]))

    emit(as_json, [vars(it) | {"path": str(it.path)} for it in done], show)
    freed = sum(it.num_bytes for it in done if not it.kept)
    print(f"\n{'would free' if dry_run else 'freed'} {shown_bytes(freed)}", file=sys.stderr)
    for (kind, why), count in Counter((it.kind, it.kept) for it in done if it.kept).items():
        print(f"kept: {count} of {kind}, {why}", file=sys.stderr)


def _row(name: str, loss: str, items: Sequence[Collected]) -> tuple[str, ...]:
    going, kept = [it for it in items if not it.kept], [it for it in items if it.kept]
    freed, held = (shown_bytes(sum(it.num_bytes for it in some)) for some in (going, kept))
    return name, str(len(going)), freed, str(len(kept)), held, loss
