"""Make the pictures of the pages: the quickstart's search, its report, and its trials in MLflow's UI.

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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.browsers import chromium, opened

from loraxs_search.reports.html.page import REPORT_FILE
from loraxs_search.studies.folder import StudyFolder

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
            seen.page.set_viewport_size({"width": 860, "height": 900})  # two figures side by side
            seen.page.locator("#sure_answers figure").screenshot(path=str(PICTURES / "where-sure.jpeg"), quality=80)
        ui = [*loraxs_search, "ui", STUDY, "--no-open"]
        with subprocess.Popen(ui, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            assert process.stdout is not None
            try:
                page = browser.new_page(viewport={"width": 1600, "height": 900})  # in less, columns do not fit
                page.set_default_timeout(120_000)
                page.goto(process.stdout.readline().strip())  # the link that is printed
                page.get_by_role("link", name=re.compile("^#[0-9]+ ")).first.wait_for()
                if (panel := page.get_by_role("button", name="Close").last).is_visible():  # MLflow's assistant
                    panel.click()
                page.screenshot(path=str(PICTURES / "ui-trials.jpeg"), quality=80)
            finally:
                process.send_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
