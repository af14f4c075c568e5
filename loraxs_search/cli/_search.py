"""What launch and resume share: the view while it runs, the result when it is done."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from loraxs_search.cli._interrupts import interrupts
from loraxs_search.cli._output import emit, print_leaderboard, print_warnings
from loraxs_search.mlflow_uri import redact, resolve_uri, sqlite_path
from loraxs_search.records import Yardstick, to_json
from loraxs_search.reports import LeaderboardRow, leaderboard, score_warnings, shown_yardsticks
from loraxs_search.studies import StudyFolder, StudyInfo

if TYPE_CHECKING:
    from loraxs_search.cli._lines import LinesView
    from loraxs_search.cli._live import LiveView
    from loraxs_search.search import SearchResult


@contextlib.contextmanager
def watched(tracking_uri: str) -> Iterator[tuple[LiveView | LinesView, threading.Event]]:
    """Yield a live table on a terminal, plain lines in a pipe, and an event that Ctrl-C sets.

    Args:
        tracking_uri: Where the trials are recorded, for the hint.

    Raises:
        SearchInterruptedError: Ctrl-C was pressed; says how to go on.
    """
    stop = threading.Event()
    with _view(_browse(tracking_uri)) as view, interrupts(view.say, lambda: view.is_training, stop):
        try:
            yield view, stop
        except KeyboardInterrupt as error:
            raise _interrupted([view.study]) from error


@contextlib.contextmanager
def watched_together(tracking_uri: str) -> Iterator[tuple[Callable[[str], LinesView], threading.Event]]:
    """Yield what makes a view of plain lines for a study, and an event that Ctrl-C sets; for several studies."""
    from loraxs_search.cli._lines import LinesView

    stop, views, browse = threading.Event(), list[LinesView](), _browse(tracking_uri)

    def view(study: str) -> LinesView:
        views.append(LinesView(sys.stderr, browse, label=study))
        return views[-1]

    # The main thread only waits, so it may be interrupted at any time.
    with interrupts(LinesView(sys.stderr, browse).say, lambda: False, stop):
        try:
            yield view, stop
        except KeyboardInterrupt as error:
            raise _interrupted([view.study for view in views]) from error


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


def _interrupted(studies: Iterable[str | None]) -> Exception:
    from loraxs_search.search import SearchInterruptedError

    begun = [study for study in studies if study is not None]
    if not begun:
        return SearchInterruptedError("The search was interrupted before its first trial; nothing was written.")
    return SearchInterruptedError(
        "\n".join(f"Study {study!r} was interrupted; nothing that was reported is lost." for study in begun),
        hint="\n".join(f"go on with `loraxs-search resume {study}`" for study in begun),
    )


def show_result(result: SearchResult, as_json: bool) -> None:
    """Print the leaderboard to stdout and what to do next to stderr."""
    info, rows, yardsticks = _leaderboard(result)
    value = _as_data(result, info, rows, yardsticks)
    emit(as_json, value, lambda: print_leaderboard(rows, info.task, yardsticks))
    _say_what_next(result, info, rows)


def show_results(results: Sequence[SearchResult], as_json: bool) -> None:
    """Print the leaderboards of several studies, as JSON in a list."""
    if not as_json:
        for result in results:
            show_result(result, as_json)
        return
    boards = [(result, *_leaderboard(result)) for result in results]
    print(to_json([_as_data(*board) for board in boards], indent=2))
    for result, info, rows, _ in boards:
        _say_what_next(result, info, rows)


def _leaderboard(result: SearchResult) -> tuple[StudyInfo, list[LeaderboardRow], list[Yardstick]]:
    folder = StudyFolder.open(result.study)
    plan = folder.info.search
    rows = leaderboard(result.trials, folder.info.task, result.candidates, plan.keep, plan.objectives)
    return folder.info, rows, shown_yardsticks(folder.yardsticks(), finished=True)


def _as_data(
    result: SearchResult, info: StudyInfo, rows: Sequence[LeaderboardRow], yardsticks: Sequence[Yardstick]
) -> dict[str, Any]:
    return {
        "study": result.study,
        "wall_s": result.wall_s,
        "notice": result.notice,
        "trials": rows,
        "front": result.front,
        "yardsticks": yardsticks,
        "warnings": score_warnings(rows, info.task),
    }


def _say_what_next(result: SearchResult, info: StudyInfo, rows: Sequence[LeaderboardRow]) -> None:
    if result.notice:
        print(f"\nnotice: {result.notice}", file=sys.stderr)
    print(f"\nstudy {result.study}: {len(rows)} trials in {result.wall_s:.0f} s", file=sys.stderr)
    print_warnings(score_warnings(rows, info.task))
    print(f"browse the trials: {_browse(info.tracking_uri)}", file=sys.stderr)
    print(f"next: loraxs-search promote {result.study}", file=sys.stderr)
