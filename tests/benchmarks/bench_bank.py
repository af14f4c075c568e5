"""What a bank of adapters costs: bytes, loading, and mixed batches beside the bare base and PEFT's own mixed batch.

    python tests/benchmarks/bench_bank.py --adapters 100000 --json bank.json

Random adapters of rank 8 on all linear layers of the quickstart's base, two labels, made in memory. Each way of
computing a batch (64 rows of 32 tokens unless told otherwise) is timed in turn, round by round, so that a busy machine
slows all of them; a row of the table has the median, and how it compares with the bare base in the same rounds. Mixed
batches name other adapters in every round. PEFT holds plain LoRA adapters of the same rank, whose number is limited by
`--peft-adapters`, since adding one takes longer with each that is there.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from loraxs_search import AdapterBank
from loraxs_search.base_model import linear_modules, load_model, locate
from loraxs_search.methods.loraxs import LoraXSConfig
from loraxs_search.records import BaseModel
from loraxs_search.search_space import load_space
from loraxs_search.tasks.kinds import kind_of

BULK = 10_000


@dataclass(frozen=True)
class Row:
    """One way of computing a batch."""

    way: str
    ms_per_batch: float
    rows_per_s: float
    against_base: float


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        space = load_space("movie_reviews")
        self._task = space.task
        self.base: BaseModel = locate(space.base_model)
        self._modules = linear_modules(self.base, kind_of(self._task).model)
        self.facts: dict[str, float] = {}
        self._draw = random.Random(0)
        ids = torch.randint(1000, 30000, (arguments.rows, arguments.tokens), generator=torch.Generator().manual_seed(0))
        self._inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self._names = [f"adapter-{i}" for i in range(arguments.adapters)]

    # ---- the bank ----------------------------------------------------------------------------------------------------
    def fill(self) -> AdapterBank:
        """Make the bank, and keep what it costs."""
        config = LoraXSConfig(r=self._arguments.rank, target_modules=[module.name for module in self._modules])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            bank = AdapterBank(self.base, device=self._arguments.device)
            bank.add(["first"], config, self._task, self._random(1))  # factors are computed or read here
            bank.evict("first")
            before, loading = resident(), 0.0
            for start in range(0, len(self._names), BULK):
                names = self._names[start : start + BULK]
                tensors = self._random(len(names))
                started = time.perf_counter()
                bank.add(names, config, self._task, tensors)
                loading += time.perf_counter() - started
                del tensors
        r_bytes = 4 * len(self._modules) * self._arguments.rank**2
        grown = (resident() - before) / len(bank)
        each = bank.num_bytes / len(bank)
        self.facts |= {
            "adapters": len(bank),
            "r_bytes": r_bytes,
            "head_bytes": each - r_bytes,
            "allocated_bytes": bank.allocated_bytes / len(bank),
            "resident_bytes": grown,
            "resident_over_numbers": grown / each,
            "million_gib": 1e6 * grown / 2**30,
            "load_us": 1e6 * loading / len(bank),
        }
        return bank

    def _random(self, num: int) -> dict[str, Tensor]:
        rank, root = self._arguments.rank, "base_model.model."
        found = {f"{root}{m.name}.loraxs_R": torch.randn(num, rank, rank) * 0.1 for m in self._modules}
        width = next(m.in_features for m in self._modules)
        return found | {
            f"{root}classifier.weight": torch.randn(num, 2, width) * 0.05,
            f"{root}classifier.bias": torch.zeros(num, 2),
        }

    # ---- PEFT --------------------------------------------------------------------------------------------------------
    def peft(self) -> PeftModel:
        """Return the base with plain LoRA adapters, and keep what they cost."""
        config = LoraConfig(
            r=self._arguments.rank,
            target_modules=[module.name for module in self._modules],
            init_lora_weights=False,
            task_type="SEQ_CLS",
        )
        model = get_peft_model(load_model(self.base, kind_of(self._task).model), config, adapter_name="lora-0").eval()
        before, started = resident(), time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of more than one adapter
            for i in range(1, self._arguments.peft_adapters):
                model.add_adapter(f"lora-{i}", config)
        seconds, added = time.perf_counter() - started, max(1, self._arguments.peft_adapters - 1)
        numbers = sum(self._arguments.rank * (m.in_features + m.out_features) for m in self._modules)
        self.facts |= {
            "peft_adapters": self._arguments.peft_adapters,
            "peft_lora_bytes": 4 * numbers,
            "peft_resident_bytes": (resident() - before) / added,
            "peft_add_us": 1e6 * seconds / added,
        }
        model.eval()
        return model.to(self._arguments.device)

    # ---- time --------------------------------------------------------------------------------------------------------
    def rows(self, bank: AdapterBank, peft: PeftModel | None) -> list[Row]:
        plain = load_model(self.base, kind_of(self._task).model, device=self._arguments.device)
        num, inputs = self._arguments.rows, {k: v.to(self._arguments.device) for k, v in self._inputs.items()}
        ways: dict[str, Callable[[], object]] = {
            "bare base": lambda: plain(**inputs).logits,
            "bank, no adapter": lambda: bank.logits([None] * num, inputs),
            "bank, one adapter": lambda: bank.logits([self._draw.choice(self._names)] * num, inputs),
            "bank, an adapter a row": lambda: bank.logits(self._draw.choices(self._names, k=num), inputs),
        }
        if peft is not None:
            known = [f"lora-{i}" for i in range(self._arguments.peft_adapters)]
            ways["PEFT, one LoRA"] = lambda: peft(**inputs, adapter_names=[self._draw.choice(known)] * num).logits
            ways["PEFT, a LoRA a row"] = lambda: peft(**inputs, adapter_names=self._draw.choices(known, k=num)).logits
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for round_ in range(self._arguments.rounds + self._arguments.warmup):
            for name, compute in ways.items():
                took = self._timed(compute)
                if round_ >= self._arguments.warmup:
                    seconds[name].append(took)
        base = seconds["bare base"]
        return [
            Row(
                name,
                1e3 * statistics.median(took),
                num / statistics.median(took),
                statistics.median(t / b for t, b in zip(took, base, strict=True)),
            )
            for name, took in seconds.items()
        ]

    def _timed(self, compute: Callable[[], object]) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            compute()
        if self._arguments.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def resident() -> int:
    """Return the bytes that this process really holds: what the C library keeps for reuse is given back first."""
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss


def table(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"{'':26}" + "".join(f"{name:>14}" for name in ("ms/batch", "rows/s", "x bare base"))
    for row in rows:
        yield f"{row.way:26}{row.ms_per_batch:14.1f}{row.rows_per_s:14.0f}{row.against_base:14.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64, help="rows of a batch")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--peft-adapters", type=int, default=64, help="LoRA adapters that PEFT holds; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="1 where others use the cores too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments)
    load = os.getloadavg()[0]
    bank = bench.fill()
    peft = bench.peft() if arguments.peft_adapters else None
    rows = bench.rows(bank, peft)
    print(f"{arguments.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, load {load:.1f}")
    for name, value in bench.facts.items():
        print(f"{name:26}{value:14,.2f}")
    print("\n".join(table(rows)))
    if arguments.json:
        chosen = {k: v for k, v in vars(arguments).items() if k != "json"}
        content = {"arguments": chosen, "load": os.getloadavg(), **bench.facts, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
