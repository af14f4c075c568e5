"""What a first search reaches: `init` and `launch` as they are, on rows of several tasks.

    python tests/benchmarks/bench_init.py --data FOLDER --tasks sst2 mrpc [--json FILE]

FOLDER and tasks are those of `bench_choices.py`, which trains what to compare with. Each task is a folder with
`train.jsonl`, `validation.jsonl` and `test.jsonl`; nothing else is said of it. A row of the table is one search:
seconds of `init`, seconds of `launch`, and the finalist's score on the test rows, its bytes and values. `--set` is
handed to `launch`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import script
from bench_choices import MANY_LABELS, TASKS, WRITTEN, files_of, text_of

from loraxs_search.home import home, write_atomic


def write_task(task: str, data: Path) -> Path:
    """Write the rows of a task as files beside each other, and return the one of training rows."""
    folder = home() / "benchmarks" / "init" / task
    for split, file in files_of(task, data).items():
        write_atomic(folder / f"{split}.jsonl", text_of(file))
    return folder / "train.jsonl"


def timed(*command: str) -> tuple[str, float]:
    """Return what a command of the program prints, and the seconds that it takes."""
    started = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "loraxs_search", *command], stdout=subprocess.PIPE, text=True, check=True
    )
    return ran.stdout, time.perf_counter() - started


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=[*TASKS, *MANY_LABELS, *WRITTEN])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments, numbers = parser.parse_args(), list[dict[str, Any]]()
    print("| | init | launch | test rows | bytes | trial |\n|---|--:|--:|--:|--:|---|")
    for task in arguments.tasks:
        rows = write_task(task, arguments.data.resolve())
        space = str(rows.parent / "space.yaml")
        _, drafted_s = timed("init", str(rows), "--out", space, "--name", f"init-{task}", "--force")
        changes = [part for change in arguments.set for part in ("--set", change)]
        printed, launched_s = timed("launch", space, *changes, "--json")
        result = json.loads(printed)
        finalist = next((trial for trial in result["trials"] if trial.get("finalist")), None)
        numbers.append({"task": task, "init_s": drafted_s, "launch_s": launched_s, **(finalist or {})})
        script.keep_numbers(arguments, numbers)
        found = "| no adapter: no trial came to its end | | |"
        if finalist:
            chosen = ", ".join(f"{name} {value}" for name, value in finalist["params"].items() if name != "batch_size")
            found = f"| {finalist['test_score']:.4f} | {finalist['stored_bytes']:,} | {chosen} |"
        print(f"| {task} | {drafted_s:.0f} s | {launched_s:.0f} s {found}", flush=True)


if __name__ == "__main__":
    main()
