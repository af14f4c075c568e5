"""What packing gains on a GPU, for bases of the size that people use: RoBERTa-large's, and a decoder of 1B parameters.

    python tests/benchmarks/bench_gpu.py [--bases roberta-large decoder-1b] [--slots 1 8 64] [--processes 4] [--json F]

Bases have random weights of that shape (nothing is downloaded) and read the quickstart's rows. For each base: one trial
alone on the GPU, `--processes` processes with a trial and a base of their own side by side (what a GPU shared by
1/K gives without packing), then packs. `steps/s` counts optimizer steps of all trials together. Without a GPU it says
`not measured`; `--on-cpu` runs the same path there with the tiny shapes, to see that it works.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import script
import torch
from bench_packing import MAX_STEPS, Bench, common_parser, table
from transformers import AutoModel, LlamaConfig, PretrainedConfig, RobertaConfig

from loraxs_search.base_model.layers import matrix
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.records.task import BaseModelRef
from loraxs_search.search_space.load import load_space

POSITIONS = 514


def config_of(name: str, vocab_size: int) -> PretrainedConfig:
    """Return the configuration of a base by its name."""
    encoder: dict[str, Any] = {"vocab_size": vocab_size, "max_position_embeddings": POSITIONS, "pad_token_id": 0}
    decoder: dict[str, Any] = {
        "vocab_size": vocab_size,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 0,
        "eos_token_id": 102,
    }
    shapes: dict[str, Callable[[], PretrainedConfig]] = {
        "roberta-large": lambda: RobertaConfig(
            **encoder, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
        ),
        "decoder-1b": lambda: LlamaConfig(
            **decoder,
            hidden_size=2048,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            intermediate_size=8192,
        ),
        "tiny-encoder": lambda: RobertaConfig(
            **encoder, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        ),
        "tiny-decoder": lambda: LlamaConfig(
            **decoder,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=64,
        ),
    }
    return shapes[name]()


def make_base(name: str, folder: Path) -> BaseModelRef:
    """Save a base with random weights and the quickstart's tokenizer."""
    tokenizer = load_tokenizer(locate(load_space("movie_reviews").base_model))
    torch.manual_seed(0)
    model: Any = AutoModel.from_config(config_of(name, len(tokenizer)))
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return BaseModelRef(id=str(folder))


def work(bench: Bench, seconds: float) -> None:
    """Train one trial alone, from the word on stdin for `seconds`; print its steps a second."""
    pack, slot = bench.unpacked()
    for _ in range(4):
        pack.step([slot])
    print("ready", flush=True)
    sys.stdin.readline()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds and count < MAX_STEPS:
        pack.step([slot])
        count += 1
    if bench.resident.device.type == "cuda":
        torch.cuda.synchronize()
    print(count / (time.perf_counter() - started), flush=True)


def side_by_side(base: BaseModelRef, arguments: argparse.Namespace) -> float:
    """Return the steps a second that processes with a trial each make together."""
    command = [sys.executable, __file__, "--worker", base.id, f"--seconds={arguments.seconds}"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers: list[Any] = [subprocess.Popen(command, **pipes) for _ in range(arguments.processes)]
    try:
        for worker in workers:
            if worker.stdout.readline().strip() != "ready":
                raise SystemExit("a process did not come up: is there memory for so many bases?")
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return sum(float(worker.stdout.readline()) for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one base; print its table."""
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(name, Path(folder))
        bench = Bench(arguments, base)
        weights = [matrix(bench.resident.model.get_submodule(m.name)) for m in bench.resident.modules]
        bench.resident.factors.prepare(weights, rank=64, basis="top")
        lone = bench.lone()
        processes = side_by_side(base, arguments)
        rows = [lone, *(bench.packed(count) for count in arguments.slots)]
    best = max(rows[1:], key=lambda row: row.steps_per_s)
    print(f"{name} on {bench.resident.device}")
    print("\n".join(table(rows)))
    print(f"  {arguments.processes} processes side by side: {processes:.1f} steps/s")
    print(
        f"  best pack ({best.slots} slots): {best.steps_per_s:.1f} steps/s,"
        f" {best.steps_per_s / lone.steps_per_s:.1f} times one trial a GPU,"
        f" {best.steps_per_s / processes:.1f} times one process a trial"
    )
    return {"processes": arguments.processes, "processes_steps_per_s": processes, "rows": [asdict(row) for row in rows]}


def main() -> None:
    parser = common_parser(__doc__)
    parser.add_argument("--bases", nargs="+", default=["roberta-large", "decoder-1b"])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long processes are timed side by side")
    parser.add_argument("--on-cpu", action="store_true")
    parser.add_argument("--worker", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        torch.set_num_threads(1)
        work(Bench(arguments, BaseModelRef(id=arguments.worker)), arguments.seconds)
        return
    if not torch.cuda.is_available() and not arguments.on_cpu:
        print("not measured: there is no GPU")
        found: dict[str, Any] = {"not measured": "there is no GPU"}
    else:
        with tempfile.TemporaryDirectory() as home:
            os.environ["LORAXS_HOME"] = home
            found = {name: measure(name, arguments) for name in arguments.bases}
    script.keep_numbers(arguments, found)


if __name__ == "__main__":
    main()
