"""loraxs-search launch SPACE..., resume STUDY, sync [STUDY]"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

from typer import Argument, Option
from typer.exceptions import Exit

from loraxs_search.cli import _out
from loraxs_search.cli.live_text import LinesView, browse
from loraxs_search.errors import SearchInterruptedError, UsageError, counted
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.reports.study_status import study_status
from loraxs_search.studies.folder import StudyFolder

if TYPE_CHECKING:
    from loraxs_search.cli._live import LiveView
    from loraxs_search.search.driver.result import SearchResult

_CURSOR_ON = b"\x1b[?25h"


@contextmanager
def _interrupts(
    say: Callable[[str], None], is_training: Callable[[], bool], studies: Callable[[], Iterable[str]]
) -> Iterator[threading.Event]:
    """Handle SIGINT and SIGTERM while a search runs; yields an event that is set by the first one.

    It is a `KeyboardInterrupt` too, unless trials train. The second one leaves the process as it is: Ray's processes
    end with it, and the study folder is whole at any moment.

    Args:
        say: Called from the signal handler; must not write to a buffered stream.
        is_training: Whether the search polls the event now.
        studies: What the hint tells to resume.
    """
    count, stop = 0, threading.Event()

    def handle(_: int, __: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            os.write(2, (_CURSOR_ON if os.isatty(2) else b"") + b"\nerror: interrupted twice, ended at once\n")
            os._exit(130)
        say("stopping; Ctrl-C again ends at once")
        stop.set()
        if not is_training():
            raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()  # others may not handle signals
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    try:
        yield stop
    except KeyboardInterrupt as error:
        raise SearchInterruptedError.of(filter(None, studies())) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watched(tracking_uri: str, *, study: str = "") -> Iterator[tuple[LiveView | LinesView, threading.Event]]:
    """Yield a view of a search, and an event that Ctrl-C sets: a live table on a terminal, plain lines in a pipe.

    Args:
        tracking_uri: Where the trials are recorded, for the hint.
        study: Its name, where that is known before the search begins.

    Raises:
        SearchInterruptedError: Ctrl-C was pressed; says how to continue.
    """
    with shown(tracking_uri) as view:
        state = view.state
        with _interrupts(
            view.say, lambda: state.is_training, lambda: [study or (state.study if state.facts else "")]
        ) as stop:
            yield view, stop


def shown(tracking_uri: str) -> AbstractContextManager[LiveView | LinesView]:
    """Return a context with a view of a search: drawn on a terminal; elsewhere, as in a notebook, lines on stderr.

    Args:
        tracking_uri: Where the trials are recorded, for the hint.
    """
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from loraxs_search.cli._live import LiveView

        return LiveView(tracking_uri)
    return nullcontext(LinesView(sys.stderr, tracking_uri))


def show_results(results: Sequence[SearchResult], as_json: bool, *, in_list: bool = False) -> None:
    """Print the leaderboard of each study to stdout and what to do next to stderr.

    Args:
        as_json: Print JSON instead: the document of the one study, or with `in_list` a list.
    """
    folders = [StudyFolder.open(result.study) for result in results]
    documents = [study_status(folder) for folder in folders]
    if as_json:
        _out.print_json(documents if in_list else documents[0])
    for folder, document in zip(folders, documents, strict=True):
        if not as_json:
            _out.print_leaderboard(document.trials, folder.info.task, document.baselines)
        if document.notice:
            _out.tell(f"\nnotice: {document.notice}")
        _out.tell(f"\nstudy {document.study}: {counted(len(document.trials), 'trial')} in {document.wall_s:.0f} s")
        _out.print_summary(document.study)
        _out.print_points(document.operating_points)
        _out.print_warnings(document.warnings)
        _out.tell(browse(document.study, folder.info.tracking_uri))
        if any(row.candidate_score is not None for row in document.trials):
            _out.tell(f"next: loraxs-search promote {document.study}")
            continue
        steps = folder.info.search.max_steps
        pace = max((row.wall_s / row.step for row in document.trials if row.step and row.wall_s), default=0.0)
        takes = f" One takes about {math.ceil(pace * steps / 60)} min here." if pace else ""
        _out.tell(f"no candidate: no trial trained all its {counted(steps, 'step')}.{takes}")
        then = f"then loraxs-search resume {document.study}"
        _out.tell(f"next: loraxs-search extend {document.study} --time TIME, {then}")


def launch(
    spaces: list[str] = Argument(metavar="SPACE", help="Space files, or names of shipped spaces."),
    name: str | None = Option(None, help="New name of the study; default: space and time."),
    address: _out.AddressOption = None,
    runtime_env: _out.RuntimeEnvOption = None,
    tracking_uri: _out.TrackingOption = None,
    storage: _out.StorageOption = None,
    overrides: _out.SetOption = None,
    as_json: _out.JsonOption = False,
) -> None:
    """Search a space and score the best adapter.

    It checks the space, the base, the data, MLflow and Ray before it writes anything. At the end it prints the
    leaderboard, best first. That is all that stdout has, or JSON with --json. While one space is searched, a terminal
    shows a live table, and a pipe gets plain lines. `loraxs-search status STUDY --watch` shows the same elsewhere.

    `loraxs-search check SPACE --data` checks a space, its base and its data beforehand, and `loraxs-search doctor SPACE
    --address ADDRESS` a cluster.

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

    options: dict[str, Any] = {"address": address, "runtime_env": runtime_env, "tracking_uri": tracking_uri}
    options |= {"storage": storage, "overrides": tuple(overrides or ())}
    if len(spaces) == 1:
        with _watched(resolve_uri(tracking_uri)) as (view, stop):
            result = launch(spaces[0], name=name, view=view, stop=stop, **options)
        show_results([result], as_json)
        return
    if name is not None:
        raise UsageError(
            "`--name` must be given with one space only.", hint="several studies are named by their spaces"
        )
    uri, views = resolve_uri(tracking_uri), dict[str, LinesView]()

    def view_of(study: str) -> LinesView:
        views[study] = LinesView(sys.stderr, uri, label=study)
        return views[study]

    # The main thread only waits, so it may be interrupted at any time.
    with _interrupts(LinesView(sys.stderr, uri).say, lambda: False, lambda: views) as stop:
        results = launch_together(spaces, views=view_of, stop=stop, **options)
    show_results(results, as_json, in_list=True)


def resume(
    study: _out.StudyArgument,
    address: _out.AddressOption = None,
    runtime_env: _out.RuntimeEnvOption = None,
    storage: _out.StorageOption = None,
    as_json: _out.JsonOption = False,
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
    with _watched(uri, study=study) as (view, stop):
        result = resume(study, address=address, runtime_env=runtime_env, storage=storage, view=view, stop=stop)
    show_results([result], as_json)


def sync(
    study: str | None = Argument(None, help="Name of the study; default: all studies."),
    as_json: _out.JsonOption = False,
) -> None:
    """Write to MLflow what studies could not while it was unreachable.

    You can repeat it: records that are there already do not change. A study in a shared storage that another machine
    has taken over is left to that machine. Exits 1 if records still wait, or if a study cannot be read.

    Example: loraxs-search sync
    """
    from loraxs_search.search.driver.result import sync

    done = list(sync(study))
    rows = [(it.study, it.state, it.problem) for it in done]
    _out.emit(as_json, done, _out.table(("study", "records", "problem"), rows))
    if any(it.state in ("waiting", "unreadable") for it in done):
        raise Exit(1)
