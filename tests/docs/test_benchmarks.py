"""Benchmarks of what is not here run to their end, on what is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(tmp_path: Path, *arguments: str, benchmark: str = "bench_gpu") -> dict[str, Any]:
    found = tmp_path / "found.json"
    command = [sys.executable, str(BENCHMARKS / f"{benchmark}.py"), *arguments, "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(found.read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
def test_the_benchmark_of_a_gpu_says_that_there_is_none(tmp_path):
    assert run(tmp_path) == {"not measured": "there is no GPU"}


@pytest.mark.long(part="search")
def test_its_path_works_on_a_cpu_with_tiny_bases(tmp_path, in_warm_home):
    short = ("--rounds", "1", "--seconds", "0.2", "--slots", "2", "--processes", "2")
    found = run(tmp_path, "--on-cpu", "--bases", "tiny-decoder", *short)["tiny-decoder"]
    assert [row["slots"] for row in found["rows"]] == ["lone", 2]
    assert found["processes_steps_per_s"] > 0


def test_validation_rows_choose_without_bias_and_test_rows_decide_without_luck(tmp_path):
    """200 searches of equally good trials from a fixed seed: what took 8 trials' best by test rows is biased."""
    found = run(tmp_path, "--quick", benchmark="bench_promotion")
    before, now = found["test rows choose"], found["validation rows choose"]
    assert before["8 candidates"]["bias"] > 1.0
    assert before["8 candidates"]["error"] > 0.05
    for size in ("1 candidates", "3 candidates", "8 candidates"):
        assert abs(now[size]["bias"]) < 2.5 * now[size]["bias_se"]
        assert now[size]["error"] <= 0.06
    assert now["20 searches"]["drift"] < before["20 searches"]["drift"]
    assert now["20 searches"]["false_promotions"] < before["20 searches"]["false_promotions"]
    assert max(values["error"] for values in found["equal adapters, few test rows"].values()) <= 0.12  # of 50 pairs
