"""What the report of a large study takes: seconds and bytes, and how long a browser draws it.

    python tests/benchmarks/bench_report.py [--trials 100 1000 10000] [--browser] [--json FILE]

Studies are made up: four reports a trial, two hosts of four slots, 40 % of the trials stopped early, some failed.
`command` is the whole command `loraxs-search report`, a process of its own, and `status` that of `status`. `page` is
the making of the page alone, in a process that has plotly and Optuna loaded. `--browser` opens each report in Debian's
Chromium, 1280 wide, without a network, and scrolls until every figure is drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.browsers import chromium, opened
from support.recorded_searches import recorded_search

from loraxs_search.reports.html.page import write_report


def measure(num_trials: int, browser: bool) -> dict[str, Any]:
    """Return the seconds and bytes of the report of a study of so many trials, and the seconds of `status`."""
    with tempfile.TemporaryDirectory(prefix="loraxs-report-") as home:
        os.environ["LORAXS_HOME"] = home
        folder = recorded_search("recorded", num_trials)
        command_s, command_cpu_s = _timed("report", folder.name)
        status_s, status_cpu_s = _timed("status", folder.name)
        start = time.perf_counter()
        path = write_report(folder)
        numbers = {
            "trials": num_trials,
            "command_s": round(command_s, 2),
            "command_cpu_s": round(command_cpu_s, 2),
            "status_s": round(status_s, 2),
            "status_cpu_s": round(status_cpu_s, 2),
            "page_s": round(time.perf_counter() - start, 2),
            "mb": round(path.stat().st_size / 1e6, 2),
        }
        return numbers | ({"drawn_s": _drawn(path)} if browser else {})


def _timed(*words: str) -> tuple[float, float]:
    """Run a command in a process of its own; return its seconds, on the clock and of a processor."""
    start, cpu = time.perf_counter(), _children_cpu()
    command = [sys.executable, "-m", "loraxs_search", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start, _children_cpu() - cpu


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _drawn(path: Path) -> float:
    with chromium() as browser:
        start = time.perf_counter()
        with opened(browser, path):
            return round(time.perf_counter() - start, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--browser", action="store_true", help="also open the reports in Chromium")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args()
    _warm_up()
    results = [measure(num_trials, args.browser) for num_trials in args.trials]
    for result in results:
        print("  ".join(f"{name} {value}" for name, value in result.items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


def _warm_up() -> None:
    """Make a small report, which loads the libraries."""
    with tempfile.TemporaryDirectory(prefix="loraxs-report-") as home:
        os.environ["LORAXS_HOME"] = home
        write_report(recorded_search("small", 20))


if __name__ == "__main__":
    main()
