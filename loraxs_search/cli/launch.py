"""loraxs-search launch SPACE..., resume STUDY, sync [STUDY]"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.exceptions import Exit

from loraxs_search.cli import _output
from loraxs_search.cli._output import StudyArgument
from loraxs_search.cli.check import check_space
from loraxs_search.cli.search import show_results, watched, watched_together
from loraxs_search.errors import UsageError
from loraxs_search.mlflow_uri import resolve_uri, sqlite_path
from loraxs_search.studies.folder import StudyFolder


def launch(  # noqa: PLR0913, PLR0917  # each is an option
    spaces: Annotated[
        list[str],
        typer.Argument(metavar="SPACE", help="Space files, or names of shipped spaces."),
    ],
    name: Annotated[str | None, typer.Option("--name", help="New name of the study; default: space and time.")] = None,
    address: _output.AddressOption = None,
    runtime_env: _output.RuntimeEnvOption = None,
    tracking_uri: _output.TrackingOption = None,
    storage: _output.StorageOption = None,
    overrides: _output.SetOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check space, base, data, name, storage and MLflow server, but not Ray; estimate the time and device "
            "hours on this machine; stop there.",
        ),
    ] = False,
    as_json: _output.JsonOption = False,
) -> None:
    """Search a space and score the best adapter.

    It checks the space, the base, the data, MLflow and Ray before it writes anything. At the end it prints the
    leaderboard, best first. That is all that stdout has, or JSON with --json. While one space is searched, a terminal
    shows a live table, and a pipe gets plain lines. `loraxs-search status STUDY --watch` shows the same elsewhere.

    With --dry-run, it checks the same but for Ray, then prints what `check --estimate` prints, and starts no search.
    MLflow is asked if it is a server. `loraxs-search doctor SPACE --address ADDRESS` checks a cluster.

    Ctrl-C stops the search cleanly (exit code 130), a second one at once. `loraxs-search resume` continues after
    either, and after a kill.

    A name that a study has already is refused. Without --address, the search uses all GPUs of this machine, or its CPUs
    if it has none.

    At the end, the best trials are trained again from new seeds (`promotion.candidates` times `promotion.seeds`, by
    default 3 x 2 trainings). All of them are scored on all validation rows. The smallest within
    `promotion.tolerance` of the best is the finalist, and only it is scored on the test rows. `search.time_budget`
    keeps time for this part, and leaves out refits that do not fit. Where answers are written, all of them write
    answers to all validation rows, and so does the base without an adapter, zero-shot and with worked examples.

    Several spaces with one base are searched together, each in its own study. Their trials share the passes over
    the base. `resume` continues one study at a time.

    A study accepts only the rows and the base that it began with: weights, tokenizer, configuration. Every host and
    every `resume` compares their content. If it differs, the error shows the expected and the actual digest.

    A trial whose numbers become NaN fails, and no other. If nearly all of the latest trials, and at least five, fail
    for one reason, the search stops and names it. A full disk, here or on a node, stops the search too, and no trial is
    blamed. `resume` continues once the cause is gone. If all trials have failed, `extend` comes before it.

    Example: loraxs-search launch mine.yaml --name mine
    """
    from loraxs_search.search.driver.launch import launch, launch_together

    changes = tuple(overrides or ())
    if dry_run:
        _check_dry_run(spaces, on_cluster=(address, runtime_env) != (None, None))
        _dry_run(spaces[0], changes, name, uri=resolve_uri(tracking_uri), storage=storage, as_json=as_json)
        return
    options: dict[str, Any] = {"address": address, "runtime_env": runtime_env, "tracking_uri": tracking_uri}
    options |= {"storage": storage, "overrides": changes}
    if len(spaces) == 1:
        with watched(resolve_uri(tracking_uri)) as (view, stop):
            result = launch(spaces[0], name=name, view=view, stop=stop, **options)
        show_results([result], as_json)
        return
    if name is not None:
        raise UsageError(
            "`--name` must be given with one space only.", hint="several studies are named by their spaces"
        )
    with watched_together(resolve_uri(tracking_uri)) as (views, stop):
        results = launch_together(spaces, views=views, stop=stop, **options)
    show_results(results, as_json, in_list=True)


def _check_dry_run(spaces: Sequence[str], *, on_cluster: bool) -> None:
    """Refuse what a dry run would ignore."""
    if len(spaces) > 1:
        raise UsageError("`--dry-run` must go with one space, but got several.", hint="give them one after the other")
    if on_cluster:
        raise UsageError(
            "`--dry-run` must go without --address and --runtime-env: it measures this machine, and starts no Ray.",
            hint="`loraxs-search doctor SPACE --address ADDRESS` checks a cluster, with --runtime-env too",
        )


def _dry_run(
    space: str, changes: Sequence[str], name: str | None, *, uri: str, storage: str | None, as_json: bool
) -> None:
    """Check what `launch` checks before it starts Ray, then print what `check --estimate` prints."""
    from loraxs_search.search.driver.launch import new_study
    from loraxs_search.search_space.load import open_space
    from loraxs_search.tracking.store import ensure_store

    loaded = open_space(space, tuple(changes))
    if sqlite_path(uri) is None:  # an embedded store is made by the search: a dry run leaves none behind
        ensure_store(uri)
    new_study(loaded, name, uri, storage)
    check_space(loaded, (), data=True, estimate=True, as_json=as_json)


def resume(
    study: StudyArgument,
    address: _output.AddressOption = None,
    runtime_env: _output.RuntimeEnvOption = None,
    storage: _output.StorageOption = None,
    as_json: _output.JsonOption = False,
) -> None:
    """Continue a search that was interrupted or killed.

    Unfinished trials continue from their last report. A trial that trains unpacked on a CPU repeats bit for bit, one in
    a pack up to the rounding of shared passes. A finished study is printed as it is.

    The study remembers its space, its MLflow address and its storage. Give --address and --runtime-env again: without
    --address the search continues on this machine. Give --storage on another machine, to fetch the copy that
    `launch --storage` made. One machine at a time works on a study. An MLflow account comes from the environment again.

    The space cannot be changed. `extend` gives a study more trials or more time, and `add` a trial of your own. With a
    finished study, `resume` then sets its candidates aside, trains, and chooses among all trials.

    Example: loraxs-search resume reviews
    """
    from loraxs_search.search.driver.launch import resume

    uri = StudyFolder.open(study).info.tracking_uri if storage is None or StudyFolder.exists(study) else resolve_uri()
    with watched(uri, study=study) as (view, stop):
        result = resume(study, address=address, runtime_env=runtime_env, storage=storage, view=view, stop=stop)
    show_results([result], as_json)


def sync(
    study: Annotated[str | None, typer.Argument(help="Name of the study; default: all studies.")] = None,
    as_json: _output.JsonOption = False,
) -> None:
    """Write to MLflow what studies could not while it was unreachable.

    You can repeat it: records that are there already do not change. A study in a shared storage that another machine
    has taken over is left to that machine. Exits 1 if records still wait, or if a study cannot be read.

    Example: loraxs-search sync
    """
    from loraxs_search.search.driver.result import sync

    done = list(sync(study))
    columns = ("study", "records", "problem")
    _output.emit(as_json, done, lambda: _output.print_table(columns, [(it.study, it.state, it.problem) for it in done]))
    if any(it.state in ("waiting", "unreadable") for it in done):
        raise Exit(1)
