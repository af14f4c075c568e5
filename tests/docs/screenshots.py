"""Take the screenshots of a report: at two widths, light and dark.

    python tests/docs/screenshots.py STUDY --out FOLDER

It writes the report of a study of LORAXS_HOME and photographs it in Debian's Chromium, whole and with the network off.
Without a study it takes a made-up one of 60 trials, so that the pictures are the same each time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.browsers import WIDTHS, chromium, opened
from support.recorded_searches import recorded_search

from loraxs_search.reports.html import write_report
from loraxs_search.studies import StudyFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", nargs="?", help="a study of LORAXS_HOME; default: a made-up one")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--first-screen", action="store_true", help="only what is seen without scrolling")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="loraxs-screenshots-") as home:
        if args.study is None:
            os.environ["LORAXS_HOME"] = home
        folder = StudyFolder.open(args.study) if args.study else recorded_search("reviews", 60)
        for path in photograph(write_report(folder, Path(home) / "report.html"), args.out, not args.first_screen):
            print(path)


def photograph(report: Path, out: Path, whole: bool) -> list[Path]:
    """Write a picture for each width and theme, and return the files."""
    written = []
    with chromium() as browser:
        for width in WIDTHS:
            for theme in ("light", "dark"):
                with opened(browser, report, width, theme) as seen:
                    path = out / f"report-{width}-{theme}.png"
                    seen.page.screenshot(path=str(path), full_page=whole)
                    written.append(path)
    return written


if __name__ == "__main__":
    main()
