"""What launch and resume share: the view while it runs, the result when it is done."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from loraxs_search.cli._interrupts import interrupts
from loraxs_search.cli._output import emit, print_leaderboard
from loraxs_search.mlflow_uri import redact, resolve_uri, sqlite_path
from loraxs_search.reports import leaderboard
from loraxs_search.studies import StudyFolder

if TYPE_CHECKING:
    from loraxs_search.cli._lines import LinesView
    from loraxs_search.cli._live import LiveView
    from loraxs_search.search import SearchResult


@contextlib.contextmanager
def watched(tracking_uri: str) -> Iterator[LiveView | LinesView]:
    """Yield a live table on a terminal, plain lines in a pipe; Ctrl-C ends what is inside in order.

    Args:
        tracking_uri: Where the trials are recorded, for the hint.

    Raises:
        SearchInterruptedError: Ctrl-C was pressed; says how to go on.
    """
    with _view(_browse(tracking_uri)) as view, interrupts(view.say, lambda: view.is_training):
        try:
            yield view
        except KeyboardInterrupt as error:
            raise _interrupted(view.study) from error


@contextlib.contextmanager
def _view(browse: str) -> Iterator[LiveView | LinesView]:
    if sys.stderr.isatty():
        from loraxs_search.cli._live import LiveView

        with LiveView(browse) as live:
            yield live
    else:
        from loraxs_search.cli._lines import LinesView

        yield LinesView(sys.stderr, browse)


def _browse(uri: str) -> str:
    if sqlite_path(uri) is None:
        return redact(uri)
    embedded = uri == resolve_uri()
    return "loraxs-search ui" if embedded else f"loraxs-search ui --tracking-uri {uri}"


def _interrupted(study: str | None) -> Exception:
    from loraxs_search.search import SearchInterruptedError

    if study is None:
        return SearchInterruptedError("The search was interrupted before its first trial; nothing was written.")
    return SearchInterruptedError(
        f"Study {study!r} was interrupted; nothing that was reported is lost.",
        hint=f"go on with `loraxs-search resume {study}`",
    )


def show_result(result: SearchResult, as_json: bool) -> None:
    """Print the leaderboard to stdout and what to do next to stderr."""
    info = StudyFolder.open(result.study).info
    rows = leaderboard(result.trials, info.task, result.candidates)
    emit(
        as_json,
        {"study": result.study, "wall_s": result.wall_s, "notice": result.notice, "trials": rows},
        lambda: print_leaderboard(rows, info.task),
    )
    if result.notice:
        print(f"\nnotice: {result.notice}", file=sys.stderr)
    print(f"\nstudy {result.study}: {len(rows)} trials in {result.wall_s:.0f} s", file=sys.stderr)
    print(f"browse the trials: {_browse(info.tracking_uri)}", file=sys.stderr)
    print(f"next: loraxs-search promote {result.study}", file=sys.stderr)
