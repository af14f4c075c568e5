"""Make the pictures of the README: the quickstart's search, its report, and its trials in MLflow's UI.

    python tests/docs/screenshots.py    into tests/docs/pictures; takes as long as the quickstart

Debian's Chromium photographs the report with the network off.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.browsers import chromium, opened

from loraxs_search.reports.html.page import REPORT_FILE
from loraxs_search.studies.folder import StudyFolder

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PICTURES = Path(__file__).parent / "pictures"
STUDY = "reviews"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="loraxs-screenshots-") as home, chromium() as browser:
        os.environ["LORAXS_HOME"] = home
        loraxs_search = [sys.executable, "-m", "loraxs_search"]
        subprocess.run([*loraxs_search, "launch", "movie_reviews", "--name", STUDY], check=True)
        report = StudyFolder.open(STUDY).path / REPORT_FILE
        with opened(browser, report) as seen:
            seen.page.screenshot(path=str(PICTURES / "report-wide-light.jpeg"), quality=80)
        with serving([*loraxs_search, "ui", STUDY, "--no-open"]) as link:
            photograph_ui(browser, link, PICTURES / "ui-trials.jpeg")


def photograph_ui(browser: Browser, link: str, path: Path) -> None:
    """Take a picture of the page that `loraxs-search ui` opens."""
    page = browser.new_page(viewport={"width": 1600, "height": 900})  # narrower, and MLflow's columns do not fit
    page.set_default_timeout(120_000)
    page.goto(link)
    page.get_by_role("link", name=re.compile("^#[0-9]+ ")).first.wait_for()
    if (panel := page.get_by_role("button", name="Close").last).is_visible():  # MLflow's assistant
        panel.click()
    page.screenshot(path=str(path), quality=80)


@contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """Serve the UI, and yield the link that is printed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        if not (link := process.stdout.readline().strip()):
            sys.exit("the UI was not served")
        yield link
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


if __name__ == "__main__":
    main()
