"""Whole searches in the precision of the device, packed and each trial alone: do final scores agree within seed noise?

    python tests/benchmarks/bench_agreement.py --data FOLDER [--trials 8] [--steps 96] [--json FILE]

FOLDER holds SST-2 as for `bench_search.py`. All trials have the same parameters and seeds of their own, so the spread
of their scores is the noise of seeds; each trial's score in a pack is held against its score alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import bench_search

RATE = 4.0e-3


def scores(arguments: argparse.Namespace, pack_size: int) -> list[float]:
    """Search with trials that differ in their seed alone; return each one's validation accuracy, in order."""
    from loraxs_search.search import launch

    arguments = argparse.Namespace(**vars(arguments), pack_size=pack_size)
    result = launch(bench_search.space_for(arguments, rate=str(RATE)))
    return [trial.reports[-1].metrics["accuracy"] for trial in result.trials]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.data = arguments.data.resolve()
    with tempfile.TemporaryDirectory() as home:
        os.environ["LORAXS_HOME"] = home
        alone, packed = scores(arguments, 1), scores(arguments, arguments.trials)
    differences = [abs(a - b) for a, b in zip(alone, packed, strict=True)]
    found: dict[str, Any] = {
        "alone": alone,
        "packed": packed,
        "seed_sd": statistics.stdev(alone),
        "mean_difference": statistics.mean(differences),
        "largest_difference": max(differences),
        "difference_of_means": abs(statistics.mean(alone) - statistics.mean(packed)),
    }
    for name, value in found.items():
        print(f"{name:>20}", value if isinstance(value, float) else [round(v, 4) for v in value])
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
