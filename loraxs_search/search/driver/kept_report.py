"""The report that a search leaves behind, in its folder and in MLflow."""

from __future__ import annotations

import logging

from loraxs_search.studies import Journal, StudyFolder
from loraxs_search.tracking.tracker import Tracker

_logger = logging.getLogger(__name__)


def keep_report(folder: StudyFolder, journal: Journal, tracker: Tracker) -> None:
    """Write the report of a search that has ended, and have MLflow keep it, once.

    The trials have ended by now, and the tracker carries their records over meanwhile. A report that cannot be made
    stops nothing: `loraxs-search report` makes it again, and says what is wrong.
    """
    from loraxs_search.reports.html.page import REPORT_FILE, write_report

    has_report = tracker.had_report if journal.has_report is None else journal.has_report
    if has_report and (folder.path / REPORT_FILE).is_file():  # on another machine it may be in MLflow alone
        return
    try:
        journal.report_written(write_report(folder).name)
    except Exception as error:  # noqa: BLE001  # whatever is wrong with a picture, the search has found what it found
        name = folder.name
        _logger.warning("no report was written (%s); try `loraxs-search report %s`", error, name)
