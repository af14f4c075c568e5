"""What launch and resume share: the view while it runs, the result when it is done."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from loraxs_search.cli._output import emit, print_leaderboard
from loraxs_search.reports import leaderboard
from loraxs_search.studies import StudyFolder

if TYPE_CHECKING:
    from loraxs_search.search import SearchResult, SearchView


@contextlib.contextmanager
def watched() -> Iterator[SearchView]:
    """Yield a live table on a terminal, plain lines in a pipe."""
    if sys.stderr.isatty():
        from loraxs_search.cli._live import LiveView

        with LiveView() as live:
            yield live
    else:
        from loraxs_search.cli._lines import LinesView

        yield LinesView(sys.stderr)


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
    print(f"next: loraxs-search promote {result.study}", file=sys.stderr)
