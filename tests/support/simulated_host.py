"""A host that trains nothing: it waits, and reports a learning curve that its trial's params decide.

It imports no torch, which takes most of the time that a host takes to start.
"""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy

from loraxs_search.errors import TrialCancelledError, TrialDivergedError
from loraxs_search.records.adapter import Answers, Confirmation, HostInfo, LinearProbe, ReferenceLogits
from loraxs_search.records.codec import Basis, Split, to_json
from loraxs_search.records.search import Baseline
from loraxs_search.records.task import BaseModel, LinearModule, Task
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialSpec
from loraxs_search.search.hosts.host_actor import HostConfig
from loraxs_search.studies.snapshots import read_reports

LAYERS, WIDTH = 6, 384
STATE_FLOATS = 25_000  # a snapshot of 100 KB, what R, a head and their moments come to
SIZE = AdapterSize(r_parameters=2304, head_parameters=770, stored_bytes=17_032)


class SimulatedHost:
    """Answers what a host is asked, after `pace_s` seconds for each report. A trial with a rate above 1 diverges."""

    def __init__(self, num_slots: int, pace_s: float) -> None:
        self._num_slots, self._pace_s = num_slots, pace_s
        self._state = np.zeros(STATE_FLOATS, np.float32)
        self._unwanted: dict[str, threading.Event] = {}

    def info(self, task: Task) -> HostInfo:
        rows: dict[Any, int] = {"train": 1000, "validation": 500, "test": 500}
        base = BaseModel(id="simulated", path="", weight_digest="0" * 64)
        names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        names += ("intermediate.dense", "output.dense")  # as those of the quickstart's base
        layers = [f"encoder.layer.{layer}.{name}" for layer in range(LAYERS) for name in names]
        modules = tuple(LinearModule(name, WIDTH, WIDTH) for name in layers)
        return HostInfo(base, modules, 770, "0" * 64, rows, "simulated", "float32", {}, self._num_slots)

    def decompose(self, names: Sequence[str], rank: int, basis: Basis) -> None: ...

    def advance(self, spec: TrialSpec, until: int, snapshot: bytes | None, task: Task) -> tuple[TrialReport, bytes]:
        unwanted = self._unwanted.setdefault(spec.name, threading.Event())
        unwanted.clear()
        if unwanted.wait(self._pace_s):
            raise TrialCancelledError(f"Trial {spec.name} was stopped.")
        if spec.hyperparameters.learning_rate > 1:
            raise TrialDivergedError("The loss must be finite, but it is infinite.")
        score = accuracy(spec, until)
        metrics = {"loss": 1 - score, **dict.fromkeys(task.metrics, score)}
        report = TrialReport(spec.trial_id, until, metrics, 1 - score, self._pace_s, 1000 * until, SIZE)
        reports = (*(read_reports(snapshot) if snapshot else ()), report)
        header = {"study": spec.study, "trial_id": spec.trial_id, "reports": reports}
        return report, safetensors.numpy.save({"state": self._state}, {"trial": to_json(header)})

    def cancel(self, names: Collection[str]) -> None:
        for name in names:
            if (unwanted := self._unwanted.get(name)) is not None:
                unwanted.set()

    def steps(self) -> Mapping[str, int]:
        return {}

    def confirm(self, spec: TrialSpec, snapshot: bytes, task: Task) -> Confirmation:
        files = {"adapter_config.json": json.dumps(spec.params).encode(), "adapter_model.safetensors": snapshot}
        return Confirmation(spec.trial_id, files, ReferenceLogits((), ()))

    def answer(self, spec: TrialSpec, snapshot: bytes, rows: range, task: Task, split: Split) -> Answers:
        labels = tuple(row % 2 for row in rows)
        wrong = random.Random(f"{spec.trial_id}/{rows.start}")
        share = read_reports(snapshot)[-1].metrics[task.metric]
        said = tuple(label if wrong.random() < share else 1 - label for label in labels)
        return Answers(said, labels, float(len(rows)))

    def answer_without_adapter(self, split: Split, rows: range, shots: int, task: Task) -> Answers:
        labels = tuple(row % 2 for row in rows)
        return Answers((0,) * len(labels), labels, float(len(rows)))

    def factor_file(self, key: str) -> bytes:
        return b""

    def linear_probe(self, task: Task) -> LinearProbe:
        return LinearProbe(reason="this host trains nothing")

    def baselines(self, task: Task) -> tuple[Baseline, ...]:
        return (Baseline("constant", {task.metric: 0.5}, {task.metric: 0.5}, answer=0),)


def simulated_host(config: HostConfig, task: Task, threads: int, *, pace_s: float) -> SimulatedHost:
    """Return the host of a config; see `HostConfig.make`."""
    assert config.pack_size != "auto"
    return SimulatedHost(config.pack_size, pace_s)


def accuracy(spec: TrialSpec, step: int) -> float:
    """Return a curve that rises to what the params allow, with a noise that depends on trial and step alone."""
    hyper = spec.hyperparameters
    far = abs(math.log10(hyper.learning_rate / 8e-3)) + 0.5 * abs(math.log10(hyper.head_learning_rate / 8e-3))
    best = 0.85 - 0.2 * far - 0.02 * abs(math.log2(hyper.rank / 8))
    noise = random.Random(f"{spec.trial_id}/{step}").gauss(0, 0.005)
    return 0.5 + (best - 0.5) * (1 - math.exp(-step / 50)) + noise
