"""What a trial of LoRA-XS and one of LoRA cost in a pack of both, and whether each is what it is alone.

    python tests/benchmarks/bench_mixed_pack.py --slots 8 --json mixed.json

The table is that of `bench_packing.py`, on the quickstart's base and data, for the same number of trials: all of
LoRA-XS, all of LoRA, and half of each. Its `speedup` is over the lone trial of the same method. `--rank` is that of
LoRA-XS, `--lora-rank` that of LoRA. Then trials of both methods, of ranks and scales of their own, train `--steps`
steps in float32 in one pack and alone; the largest relative distance of a trained tensor or moment is printed for each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from bench_packing import MAX_STEPS, Bench, Row, common_parser, table  # sets what must be set before torch is imported

from loraxs_search.engine.planning import PassExecutor, workers_for
from loraxs_search.methods import get_method
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.packing.pack import Pack
from loraxs_search.records import TrialSpec
from loraxs_search.trial import Snapshot, TrialRun, attach, detach


class MixedBench(Bench):
    """Times trials of the methods in `methods`, which take turns."""

    methods: Sequence[str] = ("lora-xs",)

    def specs(self, count: int) -> list[TrialSpec]:
        specs = super().specs(count)
        names = [self.methods[i % len(self.methods)] for i in range(count)]
        return [self._lora(spec) if name == "lora" else spec for name, spec in zip(names, specs, strict=True)]

    def _lora(self, spec: TrialSpec, **own: Any) -> TrialSpec:
        fields = get_method("lora").fields({"rank": self._arguments.lora_rank, **own}, {})
        hyper = replace(spec.hyperparameters, method="lora", rank=0, factor_rank=None, **fields)
        return replace(spec, hyperparameters=hyper)

    def unlike(self) -> list[TrialSpec]:
        """Return trials of both methods that differ in rank, scale, layers and rate."""
        specs = super().specs(4)
        names = specs[0].hyperparameters.target_modules
        changes: tuple[dict[str, Any], ...] = (
            {},
            {"rank": 4, "scale": 2.0},
            {"learning_rate": 3e-3},
            {"target_modules": names[1::2]},
        )
        specs = [
            replace(spec, hyperparameters=replace(spec.hyperparameters, max_steps=self._arguments.steps, **change))
            for spec, change in zip(specs, changes, strict=True)
        ]
        return [*specs[:2], self._lora(specs[2]), self._lora(specs[3], rank=3, rslora=True, scale=0.5)]

    def distances(self) -> dict[str, float]:
        """Train unlike trials in one pack and alone; return how far each is from itself."""
        loaded, specs = self.resident, self.unlike()
        pack = Pack(
            loaded.model,
            loaded.factors,
            loaded.modules,
            max_tokens=self._arguments.max_tokens,
            executor=PassExecutor(*workers_for(loaded.device)),
        )
        slots = [pack.join(spec, loaded.data) for spec in specs]
        for _ in range(self._arguments.steps):
            if errors := pack.step(slots):
                raise SystemExit(f"trials diverged: {errors}")
        packed = [slot.snapshot() for slot in slots]
        pack.clear()
        pairs = zip(specs, packed, strict=True)
        return {f"{s.trial_id} {s.hyperparameters.method}": distance(state, self._alone(s)) for s, state in pairs}

    def _alone(self, spec: TrialSpec) -> Snapshot:
        loaded = self.resident
        with use_factor_store(loaded.factors):
            model = attach(loaded.model, spec)
        try:
            run = TrialRun(spec, model, loaded.data, loaded.device)
            for _ in range(self._arguments.steps):
                run._train_step()
            return run.snapshot()
        finally:
            detach(model, spec)


def distance(packed: Snapshot, alone: Snapshot) -> float:
    """Return the largest |a - b| / |b| over the adapter's tensors and their moments."""
    in_pack, by_itself = {**packed.parameters, **packed.moments}, {**alone.parameters, **alone.moments}
    own = [name for name in by_itself if "modules_to_save" not in name]
    return max(float((in_pack[name] - by_itself[name]).norm() / by_itself[name].norm()) for name in own)


def timed(arguments: argparse.Namespace) -> tuple[MixedBench, list[Row]]:
    """Return a row for the lone trial of each method, and for packs of one and of both."""
    bench, rows, lone_ms = MixedBench(arguments), [], []
    for methods in (("lora-xs",), ("lora",), ("lora-xs", "lora")):
        bench.methods = methods
        if len(methods) == 1:
            rows.append(replace(bench.lone(), slots=f"lone {methods[0]}"))
            lone_ms.append(bench.lone_ms)
        bench.lone_ms = statistics.mean(lone_ms[-len(methods) :])
        for count in arguments.slots:
            rows.append(replace(bench.packed(count), slots=f"{count} {' + '.join(methods)}"))
            print(f"  {rows[-1].slots}: {rows[-1].ms_per_step:.1f} ms per trial-step", file=sys.stderr)
    return bench, rows


def main() -> None:
    parser = common_parser(__doc__)
    parser.set_defaults(slots=[8])
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30, help="steps after which packed and lone trials are compared")
    arguments = parser.parse_args()
    assert arguments.steps < MAX_STEPS
    torch.set_num_threads(arguments.threads)
    bench, rows = timed(arguments)
    print("\n".join(table(rows)))
    distances = MixedBench(argparse.Namespace(**{**vars(arguments), "precision": "float32"})).distances()
    print("\n".join(f"{name:>16}  packed and alone differ by {value:.1e}" for name, value in distances.items()))
    if arguments.json:
        info = bench.resident.info()
        facts = {"device": info.device, "dtype": info.dtype, "versions": dict(info.versions), "gemm_peak": bench.peak}
        chosen = {k: v for k, v in vars(arguments).items() if k != "json"}
        content = {**facts, "arguments": chosen, "load": os.getloadavg(), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps({**content, "distances": distances}, indent=2))


if __name__ == "__main__":
    main()
