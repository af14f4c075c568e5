"""What launch and resume share: the view while it runs, what Ctrl-C and SIGTERM do, the result when it is done."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from loraxs_search.cli._lines import EventStream, LinesView
from loraxs_search.cli._output import emit, print_leaderboard, print_summary, print_warnings
from loraxs_search.cli.live_text import browse
from loraxs_search.errors import SearchInterruptedError, UsageError, counted
from loraxs_search.log.events import Phase, SearchEnded, SearchStarted, ShownEvent
from loraxs_search.mlflow_uri import redact, sqlite_path
from loraxs_search.reports.study_status import SearchDocument, ended, search_document
from loraxs_search.studies import StudyFolder, StudyInfo

if TYPE_CHECKING:
    from loraxs_search.search import SearchResult


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


class _Sink(Protocol):
    """What takes the events of a search: a view, or a stream of lines for programs."""

    def happened(self, event: ShownEvent) -> None:
        """Take the next event."""

    def known(self, event: ShownEvent) -> None:
        """Take an event of an earlier driver."""

    def say(self, text: str) -> None:
        """Show a notice, from a signal handler too."""


class _WatchedSearch:
    """A `SearchView` that passes events on to several sinks, and knows whether the search trains.

    Args:
        study: Its name, where that is known before the search begins.
    """

    def __init__(self, sinks: Sequence[_Sink], study: str | None = None) -> None:
        self._sinks = sinks
        self.study, self.is_training = study, False

    def happened(self, event: ShownEvent) -> None:
        if isinstance(event, SearchStarted):
            self.study, self.is_training = event.study, True
        elif isinstance(event, Phase):
            self.is_training = False
        for sink in self._sinks:
            sink.happened(event)

    def known(self, event: ShownEvent) -> None:
        for sink in self._sinks:
            sink.known(event)

    def say(self, text: str) -> None:
        for sink in self._sinks:
            sink.say(text)


@contextlib.contextmanager
def watched(
    tracking_uri: str, *, study: str | None = None, as_events: bool = False
) -> Iterator[tuple[_WatchedSearch, threading.Event]]:
    """Yield a view of a search, and an event that Ctrl-C sets.

    It is a live table on a terminal, plain lines in a pipe, and for programs a stream of events on stdout beside the
    lines.

    Args:
        tracking_uri: Where the trials are recorded, for the hint.
        study: Its name, where that is known before the search begins.

    Raises:
        SearchInterruptedError: Ctrl-C was pressed; says how to continue.
    """

    stop = threading.Event()
    with _sinks(server_of(tracking_uri), as_events) as sinks:
        view = _WatchedSearch(sinks, study)
        with _ending([view], view), _interrupts(view.say, lambda: view.is_training, stop):
            try:
                yield view, stop
            except KeyboardInterrupt as error:
                raise _interrupted([view.study]) from error


@contextlib.contextmanager
def watched_together(
    tracking_uri: str, *, as_events: bool = False
) -> Iterator[tuple[Callable[[str], _WatchedSearch], threading.Event]]:
    """Yield what makes a view of a study, and an event that Ctrl-C sets; for several studies, in plain lines."""
    stop, views, server = threading.Event(), list[_WatchedSearch](), server_of(tracking_uri)
    stream = [EventStream(sys.stdout)] if as_events else []

    def view(study: str) -> _WatchedSearch:
        views.append(_WatchedSearch([*stream, LinesView(sys.stderr, server, label=study)]))
        return views[-1]

    # The main thread only waits, so it may be interrupted at any time.
    with _ending(views, _WatchedSearch(stream)), _interrupts(LinesView(sys.stderr, server).say, lambda: False, stop):
        try:
            yield view, stop
        except KeyboardInterrupt as error:
            raise _interrupted([view.study for view in views]) from error


@contextlib.contextmanager
def shown(tracking_uri: str) -> Iterator[_WatchedSearch]:
    """Yield a view of a search that a Python program has begun; signals stay the program's own.

    It is drawn in a notebook and on a terminal; elsewhere stderr gets plain lines.

    Args:
        tracking_uri: Where the trials are recorded, for the hint.
    """
    from loraxs_search.cli._live import NotebookView, in_notebook

    server = server_of(tracking_uri)
    with NotebookView(server) if in_notebook() else _sinks(server, as_events=False) as seen:
        view = _WatchedSearch([seen] if isinstance(seen, NotebookView) else seen)
        with _ending([view], view):
            yield view


@contextlib.contextmanager
def _sinks(server: str, as_events: bool) -> Iterator[Sequence[_Sink]]:
    stream = [EventStream(sys.stdout)] if as_events else []
    is_shared = as_events and sys.stdout.isatty()  # a view would be drawn into the stream
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not is_shared:
        from loraxs_search.cli._live import LiveView

        with LiveView(server) as live:
            yield [*stream, live]
    else:
        yield [*stream, *([] if is_shared else [LinesView(sys.stderr, server)])]


@contextlib.contextmanager
def _ending(views: Sequence[_WatchedSearch], last_view: _WatchedSearch) -> Iterator[None]:
    """Have each study's last event follow, when nobody works on it any more.

    Args:
        views: Of all studies by the end; more may come until then.
        last_view: The view that gets the last events.
    """
    notice = ""
    try:
        yield
    except BaseException as error:
        notice = str(error)
        raise
    finally:
        for study in [view.study for view in views] or [None]:
            if study is None or not StudyFolder.exists(study):
                last_view.happened(SearchEnded(study=study, at=time.time(), state="interrupted", notice=notice))
            else:
                last = ended(StudyFolder.open(study))
                last_view.happened(replace(last, notice=last.notice or notice))


def server_of(uri: str) -> str:
    """Return the address of an MLflow server as people may see it; empty for an embedded store, which has none."""
    return "" if sqlite_path(uri) is not None else redact(uri)


def _interrupted(studies: Iterable[str | None]) -> SearchInterruptedError:
    return SearchInterruptedError.of(study for study in studies if study is not None)


def show_results(
    results: Sequence[SearchResult], as_json: bool, *, as_events: bool = False, in_list: bool = False
) -> None:
    """Print the leaderboard of each study to stdout and what to do next to stderr.

    Args:
        as_json: Print JSON instead: the document of the one study, or with `in_list` a list.
        as_events: Stdout has had all of it.
    """
    folders = [StudyFolder.open(result.study) for result in results]
    documents = [search_document(folder, folder.journal()) for folder in folders]
    if as_json and not as_events:
        emit(True, documents if in_list else documents[0], lambda: None)
    for folder, document in zip(folders, documents, strict=True):
        if not (as_json or as_events):
            emit(False, document, partial(print_leaderboard, document.trials, folder.info.task, document.baselines))
        _say_what_next(document, folder.info)


def check_output(as_json: bool, as_events: bool) -> None:
    """Refuse two forms of output at once.

    Raises:
        UsageError: both were asked for.
    """
    if as_json and as_events:
        raise UsageError(
            "`--events` must be given without `--json`, but got both.",
            hint="the last line of --events has what --json prints",
        )


def _say_what_next(document: SearchDocument, info: StudyInfo) -> None:
    if document.notice:
        print(f"\nnotice: {document.notice}", file=sys.stderr)
    trials = counted(len(document.trials), "trial")
    print(f"\nstudy {document.study}: {trials} in {document.wall_s:.0f} s", file=sys.stderr)
    print_summary(document.study)
    print_warnings(document.warnings)
    print(browse(document.study, server_of(info.tracking_uri)), file=sys.stderr)
    print(f"next: loraxs-search promote {document.study}", file=sys.stderr)
