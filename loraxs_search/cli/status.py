"""loraxs-search status [STUDY], and the view of `--watch` from another terminal"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from loraxs_search.cli import _output
from loraxs_search.cli.launch import server_of
from loraxs_search.cli.live_text import LinesView, phase_in_words
from loraxs_search.errors import UsageError, counted
from loraxs_search.log.events import ShownEvent, Warned
from loraxs_search.records.task import Task
from loraxs_search.reports.study_status import StudyStatus, study_state, study_status, study_summaries, watch
from loraxs_search.steering import describe
from loraxs_search.studies.folder import StudyFolder


def follow(study: str) -> None:
    """Show a study's search until nobody works on it: drawn on a terminal, as lines in a pipe.

    What is drawn is wiped at the end. Of a study that nobody works on, there is nothing to follow.
    """
    folder = StudyFolder.open(study)
    if study_state(folder) != "running":
        return
    is_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    try:
        (_draw if is_terminal else _write)(folder, watch(study))
    except KeyboardInterrupt:
        print(f"\nleft the view; `loraxs-search status {study} --watch` comes back to it", file=sys.stderr)


def _draw(folder: StudyFolder, events: Iterable[ShownEvent]) -> None:
    from loraxs_search.cli._live import LiveView

    with LiveView(server_of(folder.info.tracking_uri), folder.info.created_at) as view:
        for event in events:
            view.happened(event)
            if isinstance(event, Warned):
                print(f"warning: {_output.plain(event.text)}", file=sys.stderr)  # above what is drawn


def _write(folder: StudyFolder, events: Iterable[ShownEvent]) -> None:
    server, began = server_of(folder.info.tracking_uri), folder.info.created_at
    with LinesView(sys.stdout, server, began=began, warns=True) as view:
        for event in events:
            view.happened(event)


def status(
    study: Annotated[str | None, typer.Argument(help="Name of the study; default: list all studies.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the search while it runs, until it ends; Ctrl-C leaves the view.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, each param in its own column.")] = False,
    as_json: _output.JsonOption = False,
) -> None:
    """List all studies, or the trials of one.

    Works from any terminal, also while the search runs: it reads only the study's folder and stops nothing. --watch
    draws what `launch` draws; in a pipe it writes a line an event.

    Trials come best first, and the baselines below them, scored on the same rows. Warnings, and commands
    that no search has answered yet follow on stderr. `interrupted` means that nobody works on a study: `resume`
    continues it. All columns, states and events: search_spaces/README.md, "What status shows".

    Example: loraxs-search status reviews --watch
    """
    if as_csv and as_json:
        raise UsageError("`--csv` must be the only form of output, but got --json too.", hint="leave one of them out")
    if study is None and watch:
        raise UsageError("`--watch` must be given with a study.", hint="`loraxs-search status` lists them")
    if study is None:
        _all(as_json, as_csv)
    else:
        if watch:
            follow(study)
        _one(StudyFolder.open(study), as_json, as_csv)


def _one(folder: StudyFolder, as_json: bool, as_csv: bool) -> None:
    study = study_status(folder)
    if as_csv:
        _output.print_leaderboard_csv(study.trials)
    else:
        _output.emit(as_json, study, lambda: _show(study, folder.info.task))


def _show(study: StudyStatus, task: Task) -> None:
    counts = study.progress
    _output.print_leaderboard(study.trials, task, study.baselines)
    talk = f"\n{study.study}: {study.state}, {counts.ended}/{counted(counts.num_trials, 'trial')} ended"
    print(f"{talk} ({counts.complete} complete, {counts.pruned} pruned, {counts.failed} failed)", file=sys.stderr)
    if heads := [f"{key} {value}" for key in ("pooling", "head_init") if (value := getattr(study, key)) is not None]:
        print(f"heads: {', '.join(heads)}", file=sys.stderr)
    if study.phase is not None:
        print(f"now: {phase_in_words(study.phase)}", file=sys.stderr)
    if study.finishing:
        print(f"finishing: {study.finishing}; no new trials, {counts.running} still running", file=sys.stderr)
    for command in study.commands:
        print(f"not answered yet: {describe(command)}", file=sys.stderr)
    if study.state == "finished":
        _output.print_summary(study.study)
    _output.print_warnings(study.warnings)
    if study.place:
        print(f"{study.study} runs on {study.place}, or was killed there; `resume` finds out", file=sys.stderr)


def _all(as_json: bool, as_csv: bool) -> None:
    summaries = list(study_summaries())
    columns = ("study", "task", "state", "trials", "created")
    value = [dict(zip(columns, summary.cells, strict=True)) for summary in summaries]

    def show() -> None:
        if as_csv:
            _output.print_csv(columns, [summary.cells for summary in summaries])
            return
        _output.print_table(columns, [summary.cells for summary in summaries])
        if not summaries:
            print("\nno studies yet: start one with `loraxs-search launch movie_reviews`", file=sys.stderr)

    _output.print_warnings([summary.problem for summary in summaries if summary.problem])
    _output.emit(as_json, value, show)
