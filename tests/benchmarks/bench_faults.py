"""Break a search in every way we know, again and again, and count what is lost.

    python tests/benchmarks/bench_faults.py [--only a,b] [--times N] [--kills K] [--outage S] [--seed S] [--warm FOLDER]
                                            [--json FILE [--add]]

Groups: a driver, b parts of the cluster, c MLflow, d trials, e several at once, f disks. Every search trains the
quickstart's base on real rows; MLflow runs on PostgreSQL with artifacts on an S3 API in c and e, embedded elsewhere.
After each fault the study's log and MLflow are held against each other. A fault that cannot be made here (no right to
mount or to make network namespaces, no PostgreSQL) is told as skipped.

--add goes on from the table that the JSON holds, if there is one: other faults beside it, more times of the same, at
other moments. A table of many hours can so be made in pieces, and `--only none --add` shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `faults`, which the suite shares

from faults.cases import CASES, Case, missing_means
from faults.records import Losses
from faults.world import World

COLUMNS = ("fault", "times", "lost trials", "doubled runs", "missing points", "ok")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="groups, or names of faults, with commas between")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--kills", type=int, default=5, help="of a driver, each time")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds that MLflow is away; a network half of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm", type=Path, help="keep the unpacked base there, for the next time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--add", action="store_true")
    arguments = parser.parse_args()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    wanted = set((arguments.only or "a,b,c,d,e,f").split(","))
    chosen = {name: case for name, (group, case) in CASES.items() if {name, group} & wanted}
    if arguments.add and not arguments.json:
        parser.error("--add goes on from a table: name it with --json FILE")
    begun = arguments.add and arguments.json.exists()
    rows = {row["fault"]: row for row in json.loads(arguments.json.read_text())} if begun else {}
    with tempfile.TemporaryDirectory(prefix="lx-") as folder:
        warm = arguments.warm or Path(folder) / "warm"
        if not warm.exists():
            warm_up(Path(folder), warm)
        for number, (name, case) in enumerate(chosen.items()):
            row = repeat(name, case, Path(folder) / str(number), warm, arguments, rows.get(name))
            rows[row["fault"]] = row
            print(json.dumps(row), file=sys.stderr, flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(list(rows.values()), indent=2) + "\n")
    print(table(sorted(rows.values(), key=lambda row: list(CASES).index(row["fault"].split(" (skipped")[0]))))
    return 0 if all(row["ok"] == row["times"] for row in rows.values()) else 1


def warm_up(folder: Path, warm: Path) -> None:
    """Make a home in which the base lies unpacked and decomposed, so that each fault begins soon."""
    world = World(folder, warm, trials=1, steps=4)
    world.finish(world.launch("warm"))
    for path in warm.iterdir():
        if path.name not in ("base_models", "factors", "datasets"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def repeat(
    name: str, case: Case, folder: Path, warm: Path, arguments: argparse.Namespace, before: dict[str, Any] | None
) -> dict[str, Any]:
    """Run one fault as often as wanted and sum up, with what it came to before; a failed assertion is not ok."""
    found: dict[str, Any] = before or dict.fromkeys(COLUMNS[1:], 0) | {"fault": name, "seconds": 0, "problems": []}
    total, num_ok, problems, began = Losses(), 0, list(found["problems"]), time.monotonic()
    for time_number in range(found["times"], found["times"] + arguments.times):
        place = folder / str(time_number)
        world = World(place, place / "home", kills=arguments.kills)
        world.outage_s = arguments.outage / (2 if "network" in name else 1)
        shutil.copytree(warm, world.home)
        os.environ["LORAXS_HOME"] = str(world.home)
        if reason := missing_means(case, world):
            return dict.fromkeys(COLUMNS, 0) | {"fault": f"{name} (skipped: {reason})"}
        try:
            lost = case(world, random.Random(f"{arguments.seed}/{name}/{time_number}"))
            total += lost
            num_ok += lost == Losses()
        except Exception:  # noqa: BLE001  # whatever it is, the table goes on and says so
            problems.append(traceback.format_exc())
            print(problems[-1], file=sys.stderr, flush=True)
    counts = (arguments.times, total.lost, total.doubled, total.missing, num_ok)
    sums = {column: found[column] + count for column, count in zip(COLUMNS[1:], counts, strict=True)}
    return {"fault": name, **sums, "seconds": found["seconds"] + round(time.monotonic() - began), "problems": problems}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "--:|" * (len(COLUMNS) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(str(row[c]) for c in COLUMNS) + " |" for row in rows)])


if __name__ == "__main__":
    sys.exit(main())
