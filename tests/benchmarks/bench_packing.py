"""What a trial costs in a pack, by the number of trials that share it, beside the lone trial in the same run.

    python tests/benchmarks/bench_packing.py --slots 1 2 4 8 16 32 64 --json packing.json

Every row trains the quickstart's base and data: rank 16 on all linear layers, warmed up first.
`ms/step` is the median time of one optimizer step of one trial; `efficiency` is the base's forward and input-gradient
arithmetic for real (unpadded) tokens, over that time, as a share of the machine's matrix peak measured in the same run.

    python tests/benchmarks/bench_packing.py --slots 8 --last-k 2 --no-prefix

adapts the last two layers only. What enters them is cached, for every row before the time is taken; `--no-prefix` adds
a line without that. `efficiency` counts the work of all layers still.

    python tests/benchmarks/bench_packing.py --bases roberta-large decoder-1b --slots 1 8 64

takes bases with random weights of the size that people train on a GPU; nothing is downloaded, and rows are the
quickstart's.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# As the host sets them, before torch is imported: oneDNN forgets kernels beyond this number; threads that spin while
# they wait make every step slower on a machine that others use too.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import script
import torch
from transformers import AutoConfig, AutoModel

from loraxs_search import versions
from loraxs_search.base_model.layers import repeated_layers
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.engine.passes import PassExecutor, workers_for
from loraxs_search.packing.host import LoadedBase
from loraxs_search.packing.pack import Pack, PackedModel, PeftBase, Slot
from loraxs_search.records.task import BaseModelRef
from loraxs_search.records.trial import Hyperparameters, TrialSpec
from loraxs_search.search_space.load import load_space

MAX_STEPS = 100_000
RANK, BATCH_SIZE, MAX_TOKENS, WARMUP = 16, 16, 3072, 4
QUICKSTART = "quickstart"
SHAPES = {  # of bases that are made: family, width, layers, heads, heads of keys and values, inner width
    "roberta-large": ("roberta", 1024, 24, 16, 16, 4096),
    "decoder-1b": ("llama", 2048, 16, 32, 8, 8192),
    "tiny-decoder": ("llama", 32, 2, 2, 1, 64),  # only shows that it runs
}
Row = dict[str, Any]  # a line of the table; times are per trial, memory is what one more slot holds beside activations


def make_base(name: str, folder: Path) -> BaseModelRef:
    """Save a base with random weights and the quickstart's tokenizer."""
    tokenizer = load_tokenizer(locate(load_space("movie_reviews").base_model))
    family, *sizes = SHAPES[name]
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    rest = {"vocab_size": len(tokenizer), "max_position_embeddings": 514, "pad_token_id": 0, "eos_token_id": 102}
    torch.manual_seed(0)
    model: Any = AutoModel.from_config(AutoConfig.for_model(family, **dict(zip(keys, sizes, strict=True)), **rest))
    model.to(torch.bfloat16 if torch.cuda.is_available() else torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return BaseModelRef(id=str(folder))


class Bench:
    """One base, and the time that its lone trial takes."""

    def __init__(self, arguments: argparse.Namespace, base: BaseModelRef | None) -> None:
        self.arguments = arguments
        space = load_space("movie_reviews")
        self.resident = LoadedBase(base or space.base_model, space.task)
        self.names = [module.name for module in self.resident.modules]
        self.peak = gemm_peak(self.resident.dtype, self.resident.device)
        self.lone_ms = 0.0

    def specs(self, count: int) -> list[TrialSpec]:
        """Return trials on the linear layers of the last K blocks, or on all."""
        names, last = tuple(self.names), self.arguments.last_k
        stack, layers = repeated_layers(self.resident.model, self.names)
        if layers is not None and last:
            blocks = tuple(f"{stack}.{index}." for index in range(len(layers))[-last:])
            names = tuple(name for name in names if name.startswith(blocks))
        common: dict[str, Any] = {"rank": RANK, "batch_size": BATCH_SIZE, "max_steps": MAX_STEPS, "factor_rank": 64}
        return [TrialSpec(str(i), {}, Hyperparameters(names, 1e-3, 1e-3, **common, seed=i)) for i in range(count)]

    def lone(self) -> Row:
        """Time one trial by itself, as its own PEFT model."""
        resident, (spec,) = self.resident, self.specs(1)
        pack = Pack(PeftBase(resident.model, resident.factors, self.names), max_tokens=MAX_TOKENS)
        slot = pack.join(spec, resident.prepared())
        seconds, tokens = self._timed(lambda: pack.step([slot]), lambda: slot.num_tokens, scale=4)
        size = num_bytes(slot)
        pack.base.clear()
        self.lone_ms = statistics.median(seconds) * 1e3
        return self._row("lone", 1, seconds, tokens, (1.0, 1.0), size)

    def packed(self, num_slots: int, *, prefix: bool = True) -> Row:
        """Time rounds of `num_slots` trials; with `prefix`, layers below the lowest adapted one are skipped."""
        resident, workers = self.resident, workers_for(self.resident.device)
        cached = None if prefix else 0
        parts = resident.model, resident.factors, resident.modules
        base = PackedModel(*parts, num_workers=workers[0], cache_bytes=cached)
        pack = Pack(base, max_tokens=MAX_TOKENS, executor=PassExecutor(*workers))
        slots = [pack.join(spec, resident.prepared()) for spec in self.specs(num_slots)]
        if prefix and self.arguments.last_k:
            pack.evaluate(slots[:1], "train")
        plans: list[tuple[int, float]] = []

        def round_() -> None:
            plans.append(shape_of_round(pack, slots))
            if errors := pack.step(slots):
                raise SystemExit(f"trials diverged: {errors}")

        seconds, tokens = self._timed(round_, lambda: sum(slot.num_tokens for slot in slots))
        size = max(map(num_bytes, slots)) + base.slot_bytes
        base.clear()
        means = (statistics.mean(p for p, _ in plans), statistics.mean(w for _, w in plans))
        return self._row(num_slots if prefix else f"{num_slots} (no prefix)", num_slots, seconds, tokens, means, size)

    def _timed(
        self, step: Callable[[], object], num_tokens: Callable[[], int], scale: int = 1
    ) -> tuple[list[float], float]:
        """Return the seconds of each timed step, and the mean tokens of one."""
        for _ in range(WARMUP * scale):
            step()
        if self.resident.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before, seconds = num_tokens(), []
        for _ in range(self.arguments.rounds * scale):
            started = time.perf_counter()
            step()
            if self.resident.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return seconds, (num_tokens() - before) / len(seconds)

    def _row(
        self, name: int | str, count: int, seconds: list[float], tokens: float, shape: tuple[float, float], size: int
    ) -> Row:
        middle, mean = statistics.median(seconds) / count, statistics.mean(seconds)
        work = 4 * sum(module.in_features * module.out_features for module in self.resident.modules)  # FLOP per token
        on_device = self.resident.device.type == "cuda"
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "slots": name,
            "ms_per_step": middle * 1e3,
            "us_per_token": mean / tokens * 1e6,
            "steps_per_s": 1 / middle,
            "speedup": self.lone_ms / (middle * 1e3),
            "efficiency": work * tokens / mean / self.peak,
            "passes_per_round": shape[0],
            "padding": shape[1],
            "slot_kib": size / 1024,
            "peak_mib": (torch.cuda.max_memory_allocated() if on_device else own) / 2**20,
        }


def gemm_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Return the best FLOP/s of a few matrix products of the base's kind, large enough to be efficient."""
    best = 0.0
    for rows, inner, columns in ((2048, 384, 1536), (2048, 1536, 384), (2048, 1024, 1024), (4096, 2048, 2048)):
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(columns, inner, device=device, dtype=dtype)
        for _ in range(12):
            started = time.perf_counter()
            torch.nn.functional.linear(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - started))
    return best


def shape_of_round(pack: Pack, slots: Sequence[Slot]) -> tuple[int, float]:
    """Return the passes that the next round of these slots takes, and its padded tokens over its real ones."""
    pack.base.place(slots)
    lengths = {slot.name: slot.data.lengths("train")[slot.batches.at(slot.step)] for slot in pack.base.slots}
    passes = pack.engine.plan(lengths)
    padded, real = sum(shared.num_tokens for shared in passes), sum(int(own.sum()) for own in lengths.values())
    return len(passes), padded / real


def num_bytes(slot: Slot) -> int:
    """Return the memory of a slot's trained tensors, their gradients and optimizer state."""
    gradients = [p.grad for p in slot.parameters if p.grad is not None]
    moments = itertools.chain.from_iterable(slot.moments)
    return sum(tensor.nbytes for tensor in [*slot.parameters, *gradients, *moments])


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "  ".join(f"{name:>16}" for name in rows[0])
    for row in rows:
        values = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values())
        yield "  ".join(f"{value:>16}" for value in values)


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one base; print its table."""
    with tempfile.TemporaryDirectory() as folder:
        base = None
        if name != QUICKSTART:
            base = make_base(name, Path(folder) / "base")
            os.environ["LORAXS_HOME"] = folder  # its factors go with it
        bench = Bench(arguments, base)
        device, dtype = str(bench.resident.device), str(bench.resident.dtype).removeprefix("torch.")
        peak = f"matrix peak {bench.peak / 1e9:.0f} GFLOP/s, load {os.getloadavg()[0]:.1f}"
        print(f"{name} on {device}, {dtype}, {peak}")
        rows = [bench.lone()]
        for count, prefix in itertools.product(arguments.slots, [False, True] if arguments.no_prefix else [True]):
            rows.append(bench.packed(count, prefix=prefix))
            print(f"  {rows[-1]['slots']} slots: {rows[-1]['ms_per_step']:.1f} ms per trial-step", file=sys.stderr)
    print("\n".join(table(rows)))
    return {"device": device, "dtype": dtype, "gemm_peak": bench.peak, "load": os.getloadavg(), "rows": rows}


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds for each number of slots")
    parser.add_argument("--last-k", type=int, default=0, help="adapt the last K layers only; 0 adapts all")
    parser.add_argument("--no-prefix", action="store_true", help="time each number of slots without the cache as well")
    parser.add_argument("--bases", nargs="+", default=[QUICKSTART], choices=[QUICKSTART, *SHAPES])
    arguments = parser.parse_args()
    found: dict[str, Any] = {name: measure(name, arguments) for name in arguments.bases}
    chosen = {k: v for k, v in vars(arguments).items() if k != "json"}
    script.keep_numbers(arguments, {**found, "versions": dict(versions.installed(versions.TRAINING)), "of": chosen})


if __name__ == "__main__":
    main()
