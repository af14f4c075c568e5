"""What launch and resume share: the view while it runs, what Ctrl-C and SIGTERM do, the result when it is done."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from loraxs_search.cli._lines import LinesView
from loraxs_search.cli._output import emit, print_leaderboard, print_summary, print_warnings
from loraxs_search.cli.live_text import browse
from loraxs_search.errors import SearchInterruptedError, counted
from loraxs_search.log.events import Phase, SearchStarted, ShownEvent
from loraxs_search.mlflow_uri import redact, sqlite_path
from loraxs_search.reports.study_status import SearchDocument, search_document
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.info import StudyInfo

if TYPE_CHECKING:
    from loraxs_search.search.driver.result import SearchResult


_CURSOR_ON = b"\x1b[?25h"


@contextlib.contextmanager
def _interrupts(say: Callable[[str], None], is_training: Callable[[], bool], stop: threading.Event) -> Iterator[None]:
    """Handle SIGINT and SIGTERM while a search runs.

    The first one sets `stop` while trials train, and is a `KeyboardInterrupt` before and after. The second one leaves
    the process as it is: Ray's processes end with it, and the study folder is whole at any moment.

    Args:
        say: Called from the signal handler; must not write to a buffered stream.
        is_training: Whether `stop` is being looked at now.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0

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

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _View(Protocol):
    """What shows the events of a search."""

    def happened(self, event: ShownEvent) -> None:
        """Take the next event."""

    def known(self, event: ShownEvent) -> None:
        """Take an event of an earlier driver."""

    def say(self, text: str) -> None:
        """Show a notice, from a signal handler too."""


class _WatchedSearch:
    """A `SearchView` that knows its study, and whether the search trains.

    Args:
        study: Its name, where that is known before the search begins.
    """

    def __init__(self, view: _View, study: str | None = None) -> None:
        self._view = view
        self.study, self.is_training = study, False

    def happened(self, event: ShownEvent) -> None:
        if isinstance(event, SearchStarted):
            self.study, self.is_training = event.study, True
        elif isinstance(event, Phase):
            self.is_training = False
        self._view.happened(event)

    def known(self, event: ShownEvent) -> None:
        self._view.known(event)

    def say(self, text: str) -> None:
        self._view.say(text)


@contextlib.contextmanager
def watched(tracking_uri: str, *, study: str | None = None) -> Iterator[tuple[_WatchedSearch, threading.Event]]:
    """Yield a view of a search, and an event that Ctrl-C sets: a live table on a terminal, plain lines in a pipe.

    Args:
        tracking_uri: Where the trials are recorded, for the hint.
        study: Its name, where that is known before the search begins.

    Raises:
        SearchInterruptedError: Ctrl-C was pressed; says how to continue.
    """
    stop = threading.Event()
    with _view(server_of(tracking_uri)) as shown:
        view = _WatchedSearch(shown, study)
        with _interrupts(view.say, lambda: view.is_training, stop):
            try:
                yield view, stop
            except KeyboardInterrupt as error:
                raise _interrupted([view.study]) from error


@contextlib.contextmanager
def watched_together(tracking_uri: str) -> Iterator[tuple[Callable[[str], _WatchedSearch], threading.Event]]:
    """Yield what makes a view of a study, and an event that Ctrl-C sets; for several studies, in plain lines."""
    stop, views, server = threading.Event(), list[_WatchedSearch](), server_of(tracking_uri)

    def view(study: str) -> _WatchedSearch:
        lines = stack.enter_context(LinesView(sys.stderr, server, label=study))
        views.append(_WatchedSearch(lines, study))
        return views[-1]

    # The main thread only waits, so it may be interrupted at any time.
    with contextlib.ExitStack() as stack, _interrupts(LinesView(sys.stderr, server).say, lambda: False, stop):
        try:
            yield view, stop
        except KeyboardInterrupt as error:
            raise _interrupted([view.study for view in views]) from error


@contextlib.contextmanager
def shown(tracking_uri: str) -> Iterator[_WatchedSearch]:
    """Yield a view of a search that a Python program has begun; signals stay the program's own.

    It is drawn on a terminal; elsewhere, as in a notebook, stderr gets plain lines.

    Args:
        tracking_uri: Where the trials are recorded, for the hint.
    """
    with _view(server_of(tracking_uri)) as seen:
        yield _WatchedSearch(seen)


@contextlib.contextmanager
def _view(server: str) -> Iterator[_View]:
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from loraxs_search.cli._live import LiveView

        with LiveView(server) as live:
            yield live
    else:
        with LinesView(sys.stderr, server) as lines:
            yield lines


def server_of(uri: str) -> str:
    """Return the address of an MLflow server as people may see it; empty for an embedded store, which has none."""
    return "" if sqlite_path(uri) is not None else redact(uri)


def _interrupted(studies: Iterable[str | None]) -> SearchInterruptedError:
    return SearchInterruptedError.of(study for study in studies if study is not None)


def show_results(results: Sequence[SearchResult], as_json: bool, *, in_list: bool = False) -> None:
    """Print the leaderboard of each study to stdout and what to do next to stderr.

    Args:
        as_json: Print JSON instead: the document of the one study, or with `in_list` a list.
    """
    folders = [StudyFolder.open(result.study) for result in results]
    documents = [search_document(folder, folder.journal()) for folder in folders]
    if as_json:
        emit(True, documents if in_list else documents[0], lambda: None)
    for folder, document in zip(folders, documents, strict=True):
        if not as_json:
            emit(False, document, partial(print_leaderboard, document.trials, folder.info.task, document.baselines))
        _say_what_next(document, folder.info)


def _say_what_next(document: SearchDocument, info: StudyInfo) -> None:
    if document.notice:
        print(f"\nnotice: {document.notice}", file=sys.stderr)
    trials = counted(len(document.trials), "trial")
    print(f"\nstudy {document.study}: {trials} in {document.wall_s:.0f} s", file=sys.stderr)
    print_summary(document.study)
    print_warnings(document.warnings)
    print(browse(document.study, server_of(info.tracking_uri)), file=sys.stderr)
    print(_next_step(document, info.search.max_steps), file=sys.stderr)


def _next_step(document: SearchDocument, max_steps: int) -> str:
    """Return what to do with a study that has ended; without a candidate, what time one trial needs."""
    name, rows = document.study, document.trials
    if any(row.candidate_score is not None for row in rows):
        return f"next: loraxs-search promote {name}"
    paces = [row.wall_s / row.step for row in rows if row.step and row.wall_s]
    takes = f" One takes about {math.ceil(max(paces) * max_steps / 60)} min here." if paces else ""
    return (
        f"no candidate: no trial trained all its {counted(max_steps, 'step')}.{takes}"
        f"\nnext: loraxs-search extend {name} --time TIME, then loraxs-search resume {name}"
    )
