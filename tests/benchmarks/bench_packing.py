"""What a trial costs in a pack, by the number of trials that share it, beside the lone trial in the same run.

    python tests/benchmarks/bench_packing.py --slots 1 2 4 8 16 32 64 --json packing.json

Every row trains the quickstart's base and data: rank 16 on all linear layers, warmed up first.
`ms/step` is the median time of one optimizer step of one trial; `efficiency` is the base's forward and input-gradient
arithmetic for real (unpadded) tokens, over that time, as a share of the machine's matrix peak measured in the same run.

    python tests/benchmarks/bench_packing.py --slots 8 --last-k 2 --no-prefix

adapts the last two layers only. What enters them is cached, for every row before the time is taken; `--no-prefix` adds
a line without that. `efficiency` counts the work of all layers still.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# As the host sets them, before torch is imported: oneDNN forgets kernels beyond this number; threads that spin while
# they wait make every step slower on a machine that others use too.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from typing import cast

import script
import torch

from loraxs_search import versions
from loraxs_search.base_model.layers import repeated_layers
from loraxs_search.engine.passes import PassExecutor, workers_for
from loraxs_search.packing.host import LoadedBase
from loraxs_search.packing.pack import Pack, PackedModel, PeftBase, Slot
from loraxs_search.records.task import BaseModelRef
from loraxs_search.records.trial import Hyperparameters, TrialSpec
from loraxs_search.search_space.load import load_space

MAX_STEPS = 100_000
RANK, BATCH_SIZE, MAX_TOKENS, WARMUP = 16, 16, 3072, 4


@dataclass(frozen=True)
class Row:
    """One line of the table. Times are per trial; memory is what one more slot holds outside activations."""

    slots: int | str
    ms_per_step: float
    us_per_token: float
    steps_per_s: float
    speedup: float
    efficiency: float
    passes_per_round: float
    padding: float
    slot_kib: float
    peak_mib: float


class Bench:
    def __init__(self, arguments: argparse.Namespace, base: BaseModelRef | None = None) -> None:
        self._arguments = arguments
        space = load_space("movie_reviews")
        self.resident = LoadedBase(base or space.base_model, space.task)
        modules = self.resident.modules
        self._work = 4 * sum(module.in_features * module.out_features for module in modules)  # FLOP per token
        self.peak = gemm_peak(self.resident.dtype, self.resident.device)
        self.lone_ms = 0.0

    def specs(self, count: int) -> list[TrialSpec]:
        common = Hyperparameters(
            rank=RANK,
            target_modules=self._target_modules(),
            learning_rate=1e-3,
            head_learning_rate=1e-3,
            batch_size=BATCH_SIZE,
            max_steps=MAX_STEPS,
            factor_rank=64,
        )
        return [TrialSpec(str(i), {}, Hyperparameters(**{**vars(common), "seed": i})) for i in range(count)]

    def _target_modules(self) -> tuple[str, ...]:
        """Name the linear layers of the last K blocks, or all."""
        names = [module.name for module in self.resident.modules]
        stack, layers = repeated_layers(self.resident.model, names)
        if layers is None or not self._arguments.last_k:
            return tuple(names)
        last = [f"{stack}.{index}." for index in range(len(layers))][-self._arguments.last_k :]
        return tuple(name for name in names if name.startswith(tuple(last)))

    def lone(self) -> Row:
        """Time one trial by itself, as its own PEFT model."""
        pack, slot = self.unpacked()
        seconds, tokens = self._timed(lambda: pack.step([slot]), lambda: slot.num_tokens, scale=4)
        size = num_bytes(slot)
        pack.base.clear()
        self.lone_ms = statistics.median(seconds) * 1e3
        return self._row("lone", 1, seconds, tokens, (1.0, 1.0), size)

    def unpacked(self) -> tuple[Pack, Slot]:
        """Return a trial that is its own PEFT model, with its pack."""
        resident, (spec,) = self.resident, self.specs(1)
        names = [module.name for module in resident.modules]
        pack = Pack(PeftBase(resident.model, resident.factors, names), max_tokens=MAX_TOKENS)
        return pack, pack.join(spec, resident.prepared())

    def packed(self, num_slots: int, *, prefix: bool = True) -> Row:
        """Time rounds of `num_slots` trials; with `prefix`, layers below the lowest adapted one are skipped."""
        resident = self.resident
        base = PackedModel(
            resident.model,
            resident.factors,
            resident.modules,
            num_workers=workers_for(resident.device)[0],
            cache_bytes=None if prefix else 0,
        )
        pack = Pack(base, max_tokens=MAX_TOKENS, executor=PassExecutor(*workers_for(resident.device)))
        slots = [pack.join(spec, resident.prepared()) for spec in self.specs(num_slots)]
        if prefix and self._arguments.last_k:
            pack.evaluate(slots[:1], "train")
        plans: list[tuple[int, float]] = []

        def round_() -> None:
            plans.append(shape_of_round(pack, slots))
            if errors := pack.step(slots):
                raise SystemExit(f"trials diverged: {errors}")

        seconds, tokens = self._timed(round_, lambda: sum(slot.num_tokens for slot in slots))
        size = max(map(num_bytes, slots)) + cast("PackedModel", pack.base).slot_bytes
        pack.base.clear()
        means = (statistics.mean(p for p, _ in plans), statistics.mean(w for _, w in plans))
        name = num_slots if prefix else f"{num_slots} (no prefix)"
        return self._row(name, num_slots, seconds, tokens, means, size)

    def _timed(
        self, step: Callable[[], object], num_tokens: Callable[[], int], scale: int = 1
    ) -> tuple[list[float], float]:
        """Return the seconds of each timed step, and the mean tokens of one."""
        for _ in range(WARMUP * scale):
            step()
        if self.resident.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before, seconds = num_tokens(), []
        for _ in range(self._arguments.rounds * scale):
            started = time.perf_counter()
            step()
            if self.resident.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return seconds, (num_tokens() - before) / len(seconds)

    def _row(
        self,
        name: int | str,
        count: int,
        seconds: list[float],
        tokens: float,
        shape: tuple[float, float],
        size: int,
    ) -> Row:
        middle, mean = statistics.median(seconds) / count, statistics.mean(seconds)
        return Row(
            slots=name,
            ms_per_step=middle * 1e3,
            us_per_token=mean / tokens * 1e6,
            steps_per_s=1 / middle,
            speedup=self.lone_ms / (middle * 1e3),
            efficiency=self._work * tokens / mean / self.peak,
            passes_per_round=shape[0],
            padding=shape[1],
            slot_kib=size / 1024,
            peak_mib=peak_memory(self.resident.device) / 2**20,
        )


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


def peak_memory(device: torch.device) -> int:
    """Return the bytes at the highest so far: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(rows: Sequence[Any]) -> Iterator[str]:
    """Yield the lines of the table."""
    names = list(asdict(rows[0]))
    yield "  ".join(f"{name:>16}" for name in names)
    for row in rows:
        values = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in asdict(row).values())
        yield "  ".join(f"{value:>16}" for value in values)


def common_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark of packs can be told."""
    parser = script.parser(doc)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds for each number of slots")
    parser.add_argument("--last-k", type=int, default=0, help="adapt the last K layers only; 0 adapts all")
    return parser


def main() -> None:
    parser = common_parser(__doc__)
    parser.add_argument("--no-prefix", action="store_true", help="time each number of slots without the cache as well")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    device, dtype = str(bench.resident.device), str(bench.resident.dtype).removeprefix("torch.")
    print(f"{device}, {dtype}, matrix peak {bench.peak / 1e9:.0f} GFLOP/s, load {os.getloadavg()[0]:.1f}")
    rows = [bench.lone()]
    for count, prefix in itertools.product(arguments.slots, [False, True] if arguments.no_prefix else [True]):
        rows.append(bench.packed(count, prefix=prefix))
        print(f"  {rows[-1].slots} slots: {rows[-1].ms_per_step:.1f} ms per trial-step", file=sys.stderr)
    print("\n".join(table(rows)))
    found = dict(versions.installed(versions.TRAINING))
    facts = {"device": device, "dtype": dtype, "versions": found, "gemm_peak": bench.peak, "load": os.getloadavg()}
    chosen = {k: v for k, v in vars(arguments).items() if k != "json"}
    script.keep_numbers(arguments, {**facts, "arguments": chosen, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
