"""Which adapters trials may start from: decided at launch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.studies import TASK
from support.toys import HYPERPARAMETERS

from loraxs_search.errors import UsageError
from loraxs_search.records.task import Task
from loraxs_search.search.driver import launch
from loraxs_search.search_space.load import parse_space

SPACE = """
task: sst2
base_model: a/b
method: {choice: [lora-xs, lora]}
parameters: {rank: 4, learning_rate: 1.0e-3}
start_from: t
"""


def resolved(monkeypatch: pytest.MonkeyPatch, task: Task, method: str = "lora-xs", **ours: Any) -> Any:
    """Return what trials start from where the registry has such an adapter."""
    hyper, adapter = replace(HYPERPARAMETERS, method=method), SimpleNamespace(task="t", version=1, digest="d" * 64)
    manifest = SimpleNamespace(hyperparameters=hyper, base_digest="b" * 64, task=task)
    monkeypatch.setattr(launch, "Registry", lambda uri: SimpleNamespace(resolve=lambda name: adapter))
    monkeypatch.setattr(launch, "pull", lambda name, uri: Path())
    monkeypatch.setattr(launch, "verify", lambda path: manifest)
    space = parse_space(SPACE, source="s.yaml", folder=Path())
    return launch.new_study(replace(space, task=replace(task, **ours)), None, "sqlite:///x.db").start_from


def test_an_adapter_that_no_trial_can_start_from_is_refused_at_once(monkeypatch):
    for method, law in (("lora", "trials can start from"), ("vera", "a method of the space")):
        with pytest.raises(UsageError, match=law):
            resolved(monkeypatch, TASK, method)


def test_the_head_of_one_variant_answers_another_of_the_same_task(monkeypatch):
    numbers = replace(TASK, kind="regression", labels=(), variant="de")  # of which labels do not tell
    assert resolved(monkeypatch, numbers, variant="fr").with_head
    assert resolved(monkeypatch, numbers, variant="").with_head
    assert not resolved(monkeypatch, numbers, name="another").with_head
    classes = replace(TASK, labels=("a", "b"))
    assert resolved(monkeypatch, classes, name="another").with_head, "its labels are the same"
    assert not resolved(monkeypatch, classes, labels=("a", "c")).with_head
