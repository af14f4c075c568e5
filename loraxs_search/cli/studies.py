"""loraxs-search status [STUDY], studies rm, gc; and what steers a search: stop, finish, add, extend"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from typer import Argument, Option

from loraxs_search.cli import _out
from loraxs_search.cli.live_text import LinesView, phase_in_words
from loraxs_search.errors import UsageError, counted
from loraxs_search.log.events import Warned
from loraxs_search.records.codec import Scalar
from loraxs_search.records.search import seconds_of
from loraxs_search.reports.study_status import study_status, study_summaries
from loraxs_search.reports.study_status import watch as follow
from loraxs_search.steering import describe
from loraxs_search.studies.folder import StudyFolder

if TYPE_CHECKING:
    from loraxs_search.cli._live import LiveView


def _follow(folder: StudyFolder) -> None:
    """Show a study's search until nobody works on it: drawn on a terminal, as lines in a pipe; wiped at the end."""
    uri, began = folder.info.tracking_uri, folder.info.created_at
    shown: AbstractContextManager[LiveView | LinesView] = nullcontext(
        LinesView(sys.stdout, uri, began=began, warns=True)
    )
    if is_terminal := sys.stdout.isatty() and sys.stderr.isatty():
        from loraxs_search.cli._live import LiveView

        shown = LiveView(uri, began)
    try:
        with shown as view:
            for event in follow(folder.name):
                view.happened(event)
                if is_terminal and isinstance(event, Warned):
                    _out.tell(f"warning: {_out.plain(event.text)}")  # above what is drawn
    except KeyboardInterrupt:
        _out.tell(f"\nleft the view; `loraxs-search status {folder.name} --watch` comes back to it")


def status(
    study: str | None = Argument(None, help="Name of the study; default: list all studies."),
    watch: bool = Option(
        False, "--watch", help="Show the search while it runs, until it ends; Ctrl-C leaves the view."
    ),
    as_json: _out.JsonOption = False,
) -> None:
    """List all studies, or the trials of one.

    Works from any terminal, also while the search runs: it reads only the study's folder and stops nothing. --watch
    draws what `launch` draws; in a pipe it writes a line an event.

    Trials come best first, and the baselines below them, scored on the same rows. Warnings, and commands
    that no search has answered yet follow on stderr. `interrupted` means that nobody works on a study: `resume`
    continues it. All columns, states and events: search_spaces/README.md, "What status shows".

    Example: loraxs-search status reviews --watch
    """
    if study is None and watch:
        raise UsageError("`--watch` must be given with a study.", hint="`loraxs-search status` lists them")
    if study is None:
        summaries, columns = study_summaries(), ("study", "task", "state", "trials", "created")
        rows = [[getattr(summary, name) for name in columns] for summary in summaries]
        _out.print_warnings([summary.problem for summary in summaries if summary.problem])
        _out.emit(as_json, [dict(zip(columns, row, strict=True)) for row in rows], _out.table(columns, rows))
        if not (summaries or as_json):
            _out.tell("\nno studies yet: start one with `loraxs-search launch movie_reviews`")
        return
    folder = StudyFolder.open(study)
    if watch and folder.state() == "running":
        _follow(folder)
    seen = study_status(folder)
    if as_json:
        _out.print_json(seen)
        return
    _out.print_leaderboard(seen.trials, folder.info.task, seen.baselines)
    counts = seen.progress
    ended = f"{counts.ended}/{counted(counts.num_trials, 'trial')} ended"
    each = f"{counts.complete} complete, {counts.pruned} pruned, {counts.failed} failed"
    _out.tell(f"\n{seen.study}: {seen.state}, {ended} ({each})")
    if seen.phase is not None:
        _out.tell(f"now: {phase_in_words(seen.phase)}")
    if seen.finishing:
        _out.tell(f"finishing: {seen.finishing}; no new trials, {counts.running} still running")
    for command in seen.commands:
        _out.tell(f"not answered yet: {describe(command)}")
    if seen.state == "finished":
        _out.print_summary(seen.study)
    _out.print_warnings(seen.warnings)
    if seen.place:
        _out.tell(f"{seen.study} runs on {seen.place}, or was killed there; `resume` finds out")


app = typer.Typer(help="The studies of this machine.", no_args_is_help=True, rich_markup_mode=None)


@app.command("rm")
def _rm(
    studies: _out.StudiesArgument,
    runs: bool = Option(
        False, "--runs", help="Delete the study's runs in MLflow too; by default MLflow keeps the record."
    ),
    force: bool = Option(
        False,
        "--force",
        help="Even where records still wait for MLflow, which are lost then, where the study's storage does not "
        "answer, or where the study cannot be read.",
    ),
    dry_run: bool = Option(False, "--dry-run", help="Say what would go, and remove nothing."),
    as_json: _out.JsonOption = False,
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

    if as_json:
        _out.print_json([asdict(study) | {"path": str(study.path)} for study in removed])
    for it in removed:
        if not as_json:
            of_mlflow = "" if it.num_runs is None else f" and {it.num_runs} runs in MLflow"
            verdict = "would be removed" if dry_run else "removed"
            _out.say(f"{it.study}: {verdict}, {_out.shown_bytes(it.num_bytes)}{of_mlflow}")
        if it.kept_runs:
            _out.tell(f"note: the runs of {', '.join(it.kept_runs)} stay in MLflow")
        if it.storage is not None:
            _out.tell(f"note: the copy of {it.study} in {it.storage} stays")
        if it.unasked:
            _out.tell(f"warning: a driver on another machine may still work on {it.study}: {it.unasked}")
        if it.unread:
            stays = "its runs in MLflow and a copy in a storage stay, if there are any"
            _out.tell(f"warning: {it.study} could not be read; {stays}: {it.unread}")


def gc(
    older_than: str = Option("30d", help="Only what nobody has used for so long: 12h, 30d.", metavar="TIME"),
    dry_run: bool = Option(False, "--dry-run", help="Say what would go, and remove nothing."),
    tracking_uri: _out.TrackingOption = None,
    as_json: _out.JsonOption = False,
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
    from loraxs_search.housekeeping import LOSSES, collect

    if (seconds := seconds_of(older_than)) is None:
        raise UsageError(
            f"`--older-than` must be a number with a unit, but got {older_than!r}.", hint="such as 90s, 12h or 30d"
        )
    done = collect(seconds, dry_run=dry_run, tracking_uri=tracking_uri)

    rows = []
    for kind, loss in LOSSES.items():
        of_kind = [it for it in done if it.kind == kind]
        going, kept = ([it.num_bytes for it in of_kind if bool(it.kept) is stays] for stays in (False, True))
        sizes = (str(len(going)), _out.shown_bytes(sum(going)), str(len(kept)), _out.shown_bytes(sum(kept)))
        rows.append((kind, *sizes, loss))
    columns, value = ("what", "items", "bytes", "kept", "bytes kept", "lost"), [vars(it) for it in done]
    value = [each | {"path": str(each["path"])} for each in value]
    _out.emit(as_json, value, _out.table(columns, rows, right=frozenset(columns[1:-1])))
    _out.tell(
        f"\n{'would free' if dry_run else 'freed'} {_out.shown_bytes(sum(it.num_bytes for it in done if not it.kept))}"
    )
    for (name, why), count in Counter((it.kind, it.kept) for it in done if it.kept).items():
        _out.tell(f"kept: {count} of {name}, {why}")


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
    from loraxs_search.steering import new_command, send

    answer = send(study, new_command(verb, trial_ids, arguments, params))
    if as_json:
        names = ("command_id", "state", "text", "hint", "facts")
        _out.print_json({name: getattr(answer, name) for name in names})
    elif answer.state == "queued":
        _out.tell(f"{study}: queued: {answer.text}")
    else:
        _out.say(f"{study}: {answer.text}")


def stop(
    study: _out.StudyArgument,
    trials: list[str] = Argument(help="Trials, such as 00003.", metavar="TRIAL..."),
    now: bool = Option(False, "--now", help="At the next step, without another report."),
    as_json: _out.JsonOption = False,
) -> None:
    """Stop trials of a running search.

    A stopped trial ends as PRUNED at its next report. With --now it ends at its next step, and its last report counts.

    Without a running search the command is queued: `resume` carries it out first. Type commands on the machine that
    runs the study, or through ssh. On a machine that has fetched a study from its storage, they go through that
    storage.

    Example: loraxs-search stop reviews 00003 00007 --now
    """
    _send_command(study, "stop", trials, {"now": now}, as_json=as_json)


def finish(study: _out.StudyArgument, as_json: _out.JsonOption = False) -> None:
    """Finish a running search: it proposes no more trials.

    Running trials, and those from `add`, train to their ends. Then the candidates are scored, as always. Stop the
    running trials too, if you do not want to wait for them.

    Example: loraxs-search finish reviews
    """
    _send_command(study, "finish", as_json=as_json)


def add(
    study: _out.StudyArgument,
    params: list[str] | None = Option(
        None, "--set", help="A param of the trial, e.g. --set rank=16; repeatable.", metavar="NAME=VALUE"
    ),
    source: str | None = Option(None, "--from", help="Take the other params from this trial.", metavar="TRIAL"),
    as_json: _out.JsonOption = False,
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
    from loraxs_search.steering import read_params

    _send_command(study, "add", [source] if source else [], params=read_params(params or ()), as_json=as_json)


def extend(
    study: _out.StudyArgument,
    trials: int | None = Option(None, help="Trials to propose beyond those planned."),
    time: str | None = Option(None, help="Time beyond the time budget, such as 1h, 90m or 1h30m."),
    as_json: _out.JsonOption = False,
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
