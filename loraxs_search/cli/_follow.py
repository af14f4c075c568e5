"""Watching a search from another terminal, until it ends or Ctrl-C leaves."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from loraxs_search.cli._plain import plain
from loraxs_search.cli._search import server_of
from loraxs_search.log import ShownEvent, Warned
from loraxs_search.reports import study_state, watch
from loraxs_search.studies import StudyFolder


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
                print(f"warning: {plain(event.text)}", file=sys.stderr)  # above what is drawn


def _write(folder: StudyFolder, events: Iterable[ShownEvent]) -> None:
    from loraxs_search.cli._lines import LinesView

    view = LinesView(sys.stdout, server_of(folder.info.tracking_uri), began=folder.info.created_at, warns=True)
    for event in events:
        view.happened(event)
