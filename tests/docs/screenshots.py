"""Take the screenshots of a report, at two widths, light and dark; with --ui also of the trials in MLflow's UI.

    python tests/docs/screenshots.py STUDY --out FOLDER [--ui]

It writes the report of a study of LORAXS_HOME and photographs it in Debian's Chromium, whole and with the network off.
Without a study it takes a made-up one of 60 trials, so that the pictures are the same each time. The pictures of the
README are made by

    python tests/docs/screenshots.py --out tests/docs/pictures --first-screen --ui --as-jpeg
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.browsers import WIDTHS, chromium, opened
from support.recorded_searches import recorded_search
from support.studies import TASK

from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.records import SearchRun, StudyDescription
from loraxs_search.reports.html.page import write_report
from loraxs_search.studies import StudyFolder
from loraxs_search.tracking.store import ensure_store
from loraxs_search.tracking.tracker import Tracker

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PARAMETERS = ("rank", "target_modules", "learning_rate")


@dataclass(frozen=True)
class Camera:
    """Writes pictures into a folder.

    Args:
        whole: Whether what only scrolling shows is in them.
        suffix: `png` or `jpeg`.
    """

    folder: Path
    whole: bool
    suffix: str

    def take(self, page: Page, name: str) -> Path:
        path = self.folder / f"{name}.{self.suffix}"
        page.screenshot(path=str(path), full_page=self.whole, **({"quality": 80} if self.suffix == "jpeg" else {}))
        return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", nargs="?", help="a study of LORAXS_HOME; default: a made-up one")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--first-screen", action="store_true", help="only what is seen without scrolling")
    parser.add_argument("--ui", action="store_true", help="also what `loraxs-search ui STUDY` opens")
    parser.add_argument("--as-jpeg", action="store_true", help="smaller files than PNG")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    camera = Camera(args.out, not args.first_screen, "jpeg" if args.as_jpeg else "png")
    with tempfile.TemporaryDirectory(prefix="loraxs-screenshots-") as home, chromium() as browser:
        if args.study is None:
            os.environ["LORAXS_HOME"] = home
        folder = StudyFolder.open(args.study) if args.study else made_up(args.ui)
        for path in photograph(browser, write_report(folder, Path(home) / "report.html"), camera):
            print(path)
        if args.ui:
            where = [] if args.study else ["--tracking-uri", resolve_uri(None)]
            print(photograph_ui(browser, [folder.name, *where], camera))


def made_up(in_mlflow: bool) -> StudyFolder:
    """Return a search as its records have it, those in MLflow's embedded store included if they are wanted."""
    folder = recorded_search("reviews", 60, task=replace(TASK, name="movie-reviews"))
    if not in_mlflow:
        return folder
    ensure_store(uri := resolve_uri(None))
    with Tracker(folder.name, folder.path, uri, folder.info.task.name) as tracker:
        facts, journal = StudyDescription(folder.info.task, folder.info.base_model.id, PARAMETERS), folder.journal()
        journal.driver_started(journal.last_at, SearchRun(folder.space_text(), folder.info.search, facts=facts))
        journal.search_finished("FINISHED")
        tracker.drain()
    return folder


def photograph(browser: Browser, report: Path, camera: Camera) -> list[Path]:
    """Take a picture of a report for each width and theme, and return the files."""
    written = []
    for width in WIDTHS:
        for theme in ("light", "dark"):
            with opened(browser, report, width, theme) as seen:
                written.append(camera.take(seen.page, f"report-{width}-{theme}"))
    return written


def photograph_ui(browser: Browser, words: list[str], camera: Camera) -> Path:
    """Take a picture of the page that `loraxs-search ui` opens with these words, and return the file."""
    across, down = 1600, 900  # narrower, and MLflow's columns do not fit
    with serving(words) as link:
        page = browser.new_page(viewport={"width": across, "height": down})
        page.set_default_timeout(120_000)
        page.goto(link)
        page.get_by_role("link", name=re.compile("^#[0-9]+ ")).first.wait_for()
        if (panel := page.get_by_role("button", name="Close").last).is_visible():  # MLflow's assistant
            panel.click()
        return camera.take(page, "ui-trials")


@contextmanager
def serving(words: list[str]) -> Iterator[str]:
    """Serve the UI, and yield the link that is printed."""
    command = [sys.executable, "-m", "loraxs_search", "ui", *words, "--no-open"]
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
