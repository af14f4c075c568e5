"""loraxs-search studies ls|show|export|rm, gc; and what steers a search: stop, finish, add, extend"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

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
from loraxs_search.records.literals import Scalar
from loraxs_search.records.search import AnswerState

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
            shown = "-" if value is None else str(value)
            if name == "bytes":
                shown = ", ".join(f"{part} {shown_bytes(size)}" for part, size in value.items())
            elif name == "created":
                shown = time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
            print(f"{name.replace('_', ' '):<13} {shown}")
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
        rows = []
        for kind in KINDS:
            going, kept = (
                [it.num_bytes for it in done if it.kind == kind.name and bool(it.kept) is stays]
                for stays in (False, True)
            )
            freed, held = shown_bytes(sum(going)), shown_bytes(sum(kept))
            rows.append((kind.name, str(len(going)), freed, str(len(kept)), held, kind.loss))
        print_table(columns, rows, right=frozenset(columns[1:-1]))

    emit(as_json, [vars(it) | {"path": str(it.path)} for it in done], show)
    freed = sum(it.num_bytes for it in done if not it.kept)
    print(f"\n{'would free' if dry_run else 'freed'} {shown_bytes(freed)}", file=sys.stderr)
    for (kind, why), count in Counter((it.kind, it.kept) for it in done if it.kept).items():
        print(f"kept: {count} of {kind}, {why}", file=sys.stderr)


# ---- steering --------------------------------------------------------------------------------------------------------
def _send_command(
    study: str,
    verb: str,
    trial_ids: Sequence[str] = (),
    arguments: Mapping[str, Scalar] | None = None,
    params: Mapping[str, Scalar] | None = None,
    *,
    as_json: bool,
) -> None:
    """Send a command, and print the answer; what is only queued is said on stderr.

    Raises:
        CommandError: the command is refused.
    """
    from loraxs_search.steering.send import new_command, send

    answer = send(study, new_command(verb, trial_ids, arguments, params))
    is_queued = answer.state is AnswerState.QUEUED
    text, out = f"{study}: {'queued: ' if is_queued else ''}{answer.text}", sys.stderr if is_queued else sys.stdout
    emit(as_json, answer, lambda: print(text, file=out))


def stop(
    study: StudyArgument,
    trials: Annotated[list[str], typer.Argument(help="Trials, such as 00003.", metavar="TRIAL...")],
    now: Annotated[bool, typer.Option("--now", help="At the next step, without another report.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Stop trials of a running search.

    A stopped trial ends as PRUNED at its next report. With --now it ends at its next step, and its last report counts.

    Without a running search the command is queued: `resume` carries it out first. Type commands on the machine that
    runs the study, or through ssh. On a machine that has fetched a study from its storage, they go through that
    storage.

    Example: loraxs-search stop reviews 00003 00007 --now
    """
    _send_command(study, "stop", trials, {"now": now}, as_json=as_json)


def finish(study: StudyArgument, as_json: JsonOption = False) -> None:
    """Finish a running search: it proposes no more trials.

    Running trials, and those from `add`, train to their ends. Then the candidates are scored, as always. Stop the
    running trials too, if you do not want to wait for them.

    Example: loraxs-search finish reviews
    """
    _send_command(study, "finish", as_json=as_json)


def add(
    study: StudyArgument,
    params: Annotated[
        list[str] | None,
        typer.Option("--set", help="A param of the trial, e.g. --set rank=16; repeatable.", metavar="NAME=VALUE"),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="Take the other params from this trial.", metavar="TRIAL")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add a trial of your own to a search.

    Values must be ones that the space allows. What you leave out is as in the trial that --from names, or else what the
    sampler would propose for this trial. A parameter that only goes with certain values of another one needs that one
    too.

    The trial starts once a slot is free, before new proposals. It comes on top of `search.trials`, and the sampler
    learns from it. `finish` ends proposals, and not what you have added.

    A finished search continues with `resume`. Its candidates are then chosen again, among all trials.

    Example: loraxs-search add reviews --from 00003 --set learning_rate=1e-3
    """
    from loraxs_search.steering.send import read_params

    _send_command(study, "add", [source] if source else [], params=read_params(params or ()), as_json=as_json)


def extend(
    study: StudyArgument,
    trials: Annotated[int | None, typer.Option("--trials", help="Trials to propose beyond those planned.")] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="Time beyond the time budget, such as 1h, 90m or 1h30m.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Give a search more trials or more time, a finished one too.

    A running search continues at once. With a finished one, run `loraxs-search resume STUDY` next. It sets the
    candidates aside, trains, and chooses among all trials. What was promoted stays. The new finalist answers the same
    test rows as the one before, so `promote` demands more confidence, as of any further decision on these rows.

    --time comes on top of the time budget, or of the time spent, where that is more. Without a time budget the search
    gets one: the time spent so far, and this. Trials that the time budget had ended continue first.

    Example: loraxs-search extend reviews --trials 12 --time 1h
    """
    given = {"trials": trials, "time": time}
    arguments = {name: value for name, value in given.items() if value is not None}
    _send_command(study, "extend", arguments=arguments, as_json=as_json)
