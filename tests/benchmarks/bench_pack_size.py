"""Does the best score suffer where a pack fills the device? The same searches with `pack_size: auto` and small packs.

    python tests/benchmarks/bench_pack_size.py [--space movie_reviews] [--trials 12] [--seeds 5] [--json FILE]

A sampler learns from trials that have reported, so the more of them train at once, the less it knows when it proposes.
Each seed is searched twice: as `auto` has it, and with a third of the trials at once. A row tells the best validation
score of each and how long it took; the last lines tell the mean difference and its standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

SMALL, AUTO = "a third of the trials", "auto"


def best_score(space: str, seed: int, trials: int, pack_size: int | str) -> tuple[float, float]:
    """Search once; return the best validation score of a trial that trained all its steps, and the wall time."""
    from loraxs_search.search import launch

    plan = {"trials": trials, "seed": seed, "pack_size": pack_size}
    overrides = [f"search.{key}={value}" for key, value in plan.items()]
    overrides += ["promotion.candidates=1", "promotion.seeds=0"]
    started = time.perf_counter()
    result = launch(space, overrides=overrides)
    seconds = time.perf_counter() - started
    complete = [trial.reports[-1].metrics["accuracy"] for trial in result.trials if trial.state == "COMPLETE"]
    return max(complete), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="movie_reviews", help="a space whose metric is accuracy")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sizes: dict[str, int | str] = {AUTO: "auto", SMALL: max(1, arguments.trials // 3)}
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in sizes}
    print(f"{'seed':>4}" + "".join(f"{name:>24}{'s':>8}" for name in sizes))
    for seed in range(arguments.seeds):
        for name, size in sizes.items():
            scores[name].append(best_score(arguments.space, seed, arguments.trials, size))
        cells = "".join(f"{scores[name][-1][0]:>24.4f}{scores[name][-1][1]:>8.1f}" for name in sizes)
        print(f"{seed:>4}{cells}", flush=True)
    differences = [auto[0] - small[0] for auto, small in zip(scores[AUTO], scores[SMALL], strict=True)]
    error = statistics.pstdev(differences) / max(1, len(differences) - 1) ** 0.5
    print(f"best score, {AUTO} less {SMALL}: mean {statistics.mean(differences):+.4f}, standard error {error:.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
