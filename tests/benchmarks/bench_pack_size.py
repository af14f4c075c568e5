"""Does the best score suffer where a pack fills the device? The same searches with `pack_size: auto` and small packs.

    python tests/benchmarks/bench_pack_size.py [--space movie_reviews] [--trials 12] [--seeds 5] [--json FILE]
    python tests/benchmarks/bench_pack_size.py --rows FILE [--trials 12] [--searches 2000] [--json FILE]

A sampler learns from trials that have reported, so the more of them train at once, the less it knows when it proposes.
Each seed is searched twice: as `auto` has it, and with a third of the trials at once. A row tells the best validation
score of each and how long it took; the last lines tell the mean difference and its standard error.

`--rows` asks the same of searches whose reports score fewer validation rows. It trains twice `--trials` drawn trials
on film reviews with MiniLM, and notes in FILE which rows each has right at each report; a second call continues from
FILE. Then it replays ASHA on these, many times, each time with other trials in another order and with other rows.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from bench_objectives import AT_ONCE, METRIC, space_of

from loraxs_search.records import AdapterSize, SearchPlan, Split, TrialReport, TrialSpec
from loraxs_search.schedulers import make_scheduler

SMALL, AUTO = "a third of the trials", "auto"
ROWS = {"steps": 160, "every": 40, "batch_size": 16, "rows": 500, "max_length": 64}
RULES: dict[str, Callable[[int, int], int]] = {  # step and all rows to the rows that a report scores
    "all": lambda step, rows: rows,
    "compared": lambda step, rows: rows if step in (40, 80, 160) else 128,
    "growing": lambda step, rows: max(128, rows * step // 160),
    "half at first": lambda step, rows: rows // 2 if step == 40 else rows,
    "one at first": lambda step, rows: 1 if step == 40 else rows,
}


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


def record_rows(path: Path, num_trials: int) -> None:
    """Train drawn configurations, each alone; write which validation rows each has right at each report, and which test
    rows at the end. A file that has some of them is completed."""
    from loraxs_search import assets
    from loraxs_search.packing.loaded_base import LoadedBase
    from loraxs_search.trial import TrialRun, attach, detach, score_rows

    space = space_of(ROWS)
    loaded = LoadedBase(space.base_model, space.task.for_candidates)
    probe, data = assets.keep(loaded.linear_probe().content), loaded.prepared()

    def right(run: TrialRun, split: Split) -> str:
        scores = score_rows(run.model, data, split, np.arange(data.num_rows(split)))
        return "".join("01"[int(it)] for it in scores.answers_like(data.labels(split)) == data.labels(split))

    trials: list[dict[str, str]] = json.loads(path.read_text()) if path.exists() else []
    for number in range(len(trials), num_trials):
        drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number)).ask()
        params = space.suggest(drawn)
        hyper = replace(space.hyperparameters(params, loaded.modules, seed=number), linear_probe=probe)
        spec = TrialSpec(f"{number:05d}", params, hyper)
        run = TrialRun(spec, attach(loaded.model, spec, loaded.factors, data.kind.outputs), data, loaded.device)
        rows = dict[str, str]()
        for step in range(ROWS["every"], ROWS["steps"] + 1, ROWS["every"]):
            run.train(step)
            rows[str(step)] = right(run, "validation")
        trials.append(rows | {"test": right(run, "test")})
        detach(run.model, spec)
        path.write_text(json.dumps(trials))
        shares = " ".join(f"{it.count('1') / len(it):.3f}" for it in trials[-1].values())
        print(f"{number + 1}/{num_trials}  {shares}  {params}", flush=True)


def compare_rules(trials: Sequence[Mapping[str, str]], num_searches: int) -> dict[str, Any]:
    """Replay searches whose reports score all rows, and the same ones with other numbers of rows.

    Each search has its own half of the trials, their order, and `ROWS["rows"]` validation rows of its own. As in a
    search, the three best by their last reports are scored on all validation rows, and the best of these wins.
    """
    right = [{key: np.array(list(rows), dtype=np.int8) for key, rows in trial.items()} for trial in trials]
    test, drawn = [100 * float(trial["test"].mean()) for trial in right], list[int]()
    found: dict[str, list[tuple[int, int, int]]] = {rule: [] for rule in RULES}
    orders = list[Collection[int]]()
    for seed in range(num_searches):
        draw = np.random.default_rng(seed)
        rows = draw.permutation(len(right[0][str(ROWS["steps"])]))[: ROWS["rows"]]
        order = draw.permutation(len(trials))[: len(trials) // 2].tolist()
        drawn += order
        orders.append(set(order))
        for rule, searches in found.items():
            searches.append(_searched(right, order, rows, RULES[rule]))
    summary: dict[str, Any] = {"any trial": statistics.mean(test[number] for number in drawn)}
    for rule, searches in found.items():
        lost = [test[own[0]] - test[other[0]] for own, other in zip(found["all"], searches, strict=True)]
        num_rows, num_steps = (statistics.mean(column) for column in list(zip(*searches, strict=True))[1:])
        summary[rule] = {
            "test": statistics.mean(test[winner] for winner, _, _ in searches),
            "lost": statistics.mean(lost),
            "error": _jackknife(lost, orders, len(trials)),
            "scored_rows": num_rows,
            "row_passes": num_rows + 2 * ROWS["batch_size"] * num_steps,  # backward costs as much as forward
        }
        print(f"{rule:<14}" + "  ".join(f"{key} {value:.3f}" for key, value in summary[rule].items()), flush=True)
    return summary


def _jackknife(values: Sequence[float], orders: Sequence[Collection[int]], num_trials: int) -> float:
    """Return the standard error of a mean over searches, which share the trials that they are drawn from."""
    pairs = list(zip(values, orders, strict=True))
    without = [statistics.mean(value for value, order in pairs if left not in order) for left in range(num_trials)]
    return math.sqrt((num_trials - 1) * statistics.pvariance(without))


def _searched(
    right: Sequence[Mapping[str, Any]], order: Sequence[int], rows: Any, rule: Callable[[int, int], int]
) -> tuple[int, int, int]:
    """Return the winner of one search, the rows that its reports scored, and the steps of its trials."""
    plan = SearchPlan(max_steps=ROWS["steps"], report_every=ROWS["every"])
    scheduler, waiting, running, last = make_scheduler(plan, "maximize"), list(order), dict[int, int](), {}
    num_rows = num_steps = 0
    while waiting or running:
        free = AT_ONCE - len(running)
        running, waiting = running | dict.fromkeys(waiting[:free], 0), waiting[free:]
        scores = {}
        for trial, step in running.items():
            at = step + plan.report_every
            some = rows[: rule(at, len(rows))]
            scores[str(trial)] = (at, float(right[trial][str(at)][some].mean()))
            num_rows, num_steps = num_rows + len(some), num_steps + plan.report_every
        running = {}
        for name, (at, score) in scores.items():
            peers = {other: scored for other, scored in scores.items() if other != name}
            report = TrialReport(name, at, {METRIC: score}, 0.0, 0.0, 0, AdapterSize(0, 0, 0), peers=peers)
            stopped = scheduler.report(report, METRIC)
            if at == plan.max_steps:
                last[int(name)] = score
            elif stopped is None:
                running[int(name)] = at
    candidates = sorted(last, key=lambda trial: -last[trial])[:3]
    return max(candidates, key=lambda trial: right[trial][str(plan.max_steps)].mean()), num_rows, num_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="movie_reviews", help="a space whose metric is accuracy")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=Path, help="trials and the rows that they have right, to begin or to continue")
    parser.add_argument("--searches", type=int, default=2000, help="that --rows replays with each rule")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.rows:
        record_rows(arguments.rows, 2 * arguments.trials)
        rules = compare_rules(json.loads(arguments.rows.read_text()), arguments.searches)
        if arguments.json:
            arguments.json.write_text(json.dumps(rules, indent=2))
        return
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
