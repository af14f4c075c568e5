"""Tasks of several kinds on one base: they share passes, and each trial is what it is alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import toy_language
from support.trials import run_alone, train

from loraxs_search.engine.passes import PassExecutor
from loraxs_search.methods import get_method
from loraxs_search.packing import host as module
from loraxs_search.packing.host import LoadedBase
from loraxs_search.packing.pack import Pack, PackedModel
from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.task import DataSource, Task
from loraxs_search.records.trial import Hyperparameters, TrialSpec
from loraxs_search.tasks.prepared import PreparedTask
from loraxs_search.trial.snapshot import Snapshot

TOLERANCE = 1e-5  # relative, on every R, its moments, the heads and theirs
NUM_STEPS = 10
WITH_HEAD, WITHOUT = ("sequence-classification", "regression"), ("text-generation", "multiple-choice")
GROUPS = {"heads": WITH_HEAD * 2, "no-heads": WITHOUT * 2}  # a pass has two trials of each kind


def make_tasks(folder: Path) -> dict[str, Task]:
    """Write a base and rows that all four kinds learn from; return a task of each kind."""
    toy_language.save_base(folder)
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    for split, size in {"train": 60, "validation": 20, "test": 8}.items():
        words = [[toy_language.WORDS[(7 * i + 3 * j) % 20] for j in range(1 + i % 7)] for i in range(size)]
        rows = [
            {"words": " ".join(own), "turned": " ".join(own[::-1][:3]), "label": i % 3, "number": len(own) / 4}
            for i, own in enumerate(words)
        ]
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource(data_files=files)
    classes = Task(
        "classes", WITH_HEAD[0], source, "words", "label", "accuracy", "maximize", ("accuracy",), labels=("a", "b", "c")
    )
    numbers = Task("numbers", WITH_HEAD[1], source, "words", "number", "mse", "minimize", ("mse",))
    own = [
        replace(classes, max_length=16),
        replace(numbers, max_length=16),
        toy_language.writing(source=source),
        toy_language.choosing(source=source),
    ]
    return {task.kind: task for task in own}


class MixedWorld:
    """One base, loaded by its first task, on which trials of all kinds run alone or packed.

    Args:
        lora: The trials, by number, that train plain LoRA.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], lora: Sequence[int] = ()) -> None:
        self.lora = frozenset(lora)
        self.tasks = make_tasks(folder)
        self.ref = BaseModelRef(id=str(folder))
        self.loaded = LoadedBase(self.ref, self.tasks[kinds[0]], precision="float32", device="cpu")
        self.names = [module.name for module in self.loaded.modules]
        self.trials = [(self.spec(i, kind), self.loaded.prepared(self.tasks[kind])) for i, kind in enumerate(kinds)]

    def spec(self, number: int, kind: str) -> TrialSpec:
        top = tuple(name for name in self.names if ".1." in name)
        own: dict[str, Any] = {"rank": 3 + number, "scale": (1.0, 2.0, 0.5, 1.0)[number]}
        if number in self.lora:
            own = {"method": "lora", **get_method("lora").fields(own, {})}
        hyper = Hyperparameters(
            **own,
            target_modules=(tuple(self.names), top, tuple(self.names[::2]), tuple(self.names[1::3]))[number],
            learning_rate=2e-3,
            head_learning_rate=1e-3,
            init_std=1e-2,
            batch_size=(8, 5, 16, 7)[number],
            max_steps=50,
            seed=number,
        )
        return TrialSpec(str(number // 2), {}, hyper, study=kind)  # the same id in both studies

    def pack(self, num_workers: int = 1, max_tokens: int = 400) -> Pack:
        base = PackedModel(self.loaded.model, self.loaded.factors, self.loaded.modules, num_workers=num_workers)
        return Pack(base, max_tokens=max_tokens, executor=PassExecutor(num_workers))

    def lone(self, spec: TrialSpec, data: PreparedTask) -> Snapshot:
        """Run a trial by itself on a base that its own task has loaded; return its state after a report."""
        own = LoadedBase(self.ref, data.task, precision="float32", device="cpu")
        return run_alone(spec, data, own.model, own.factors, NUM_STEPS)


def distance(packed: Snapshot, lone: Snapshot) -> float:
    """Return the largest |a - b| / |b| over every trained tensor and its moments."""
    ours, theirs = packed.parameters | packed.moments, lone.parameters | lone.moments
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - value).norm() / value.norm()) for name, value in theirs.items())


@pytest.mark.parametrize("group", GROUPS)
def test_a_pack_of_several_kinds_equals_lone_trials(tmp_path, monkeypatch, group):
    """One of each kind trains LoRA, the other LoRA-XS."""
    world = MixedWorld(tmp_path, GROUPS[group], lora=(1, 2))
    pack = world.pack(num_workers=3)
    slots = [pack.join(spec, data) for spec, data in world.trials]
    run, company = PassExecutor.run, set[frozenset[str]]()

    def watched(executor: Any, shared: Any, compute: Any) -> Any:
        company.update(frozenset(str(share.name) for share in own.shares) for own in shared)
        return run(executor, shared, compute)

    monkeypatch.setattr(PassExecutor, "run", watched)
    train(pack, slots, NUM_STEPS)
    assert len(max(company, key=len)) == len(slots)  # rows of all four in one pass
    scores = pack.evaluate(slots, "validation")
    packed = [slot.snapshot() for slot in slots]
    reports = [slot.report(scores[slot.name]) for slot in slots]  # type: ignore[arg-type]
    pack.base.clear()
    for (spec, data), snapshot, report in zip(world.trials, packed, reports, strict=True):
        lone = world.lone(spec, data)
        assert distance(snapshot, lone) < TOLERANCE, spec
        assert report.train_loss == pytest.approx(lone.reports[-1].train_loss, rel=1e-5)
        assert report.metrics == pytest.approx(lone.reports[-1].metrics, rel=1e-5)
        assert report.size == lone.reports[-1].size


def test_of_a_further_task_only_the_head_is_loaded_onto_the_device(tmp_path, monkeypatch):
    """A second body beside the first may be more than the device holds."""
    devices, load = [], module.load_model

    def watched(*arguments: Any, **options: Any) -> Any:
        devices.append(str(options["device"]))
        return load(*arguments, **options)

    monkeypatch.setattr(module, "load_model", watched)
    tasks = make_tasks(tmp_path)
    loaded = LoadedBase(BaseModelRef(id=str(tmp_path)), tasks[WITH_HEAD[0]], precision="float32", device="cpu:0")
    loaded.exact_for(tasks[WITH_HEAD[1]])
    assert devices == ["cpu:0", "cpu"]
