"""Which adapters trials may start from, and what `pooling: auto` comes to: decided at launch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.studies import TASK, study
from support.toys import HYPERPARAMETERS

from loraxs_search.errors import UsageError
from loraxs_search.records.adapter import AdapterRef, StartFrom
from loraxs_search.records.base import BaseModel
from loraxs_search.records.host import HostInfo
from loraxs_search.records.literals import Pooling
from loraxs_search.search.driver import launch
from loraxs_search.search_space.load import parse_space

SPACE = """
task: sst2
base_model: a/b
method: {choice: [lora-xs, lora]}
parameters: {rank: 4, learning_rate: 1.0e-3}
start_from: t
"""


@pytest.mark.parametrize(
    ("method", "law"),
    [
        ("lora", r"must name an adapter that trials can start from, but t:1 is of lora"),
        ("vera", r"must name an adapter of a method of the space"),
    ],
)
def test_an_adapter_that_no_trial_can_start_from_is_refused_at_once(
    method: str, law: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = SimpleNamespace(task="t", version=1, digest="d" * 64)
    manifest = SimpleNamespace(hyperparameters=replace(HYPERPARAMETERS, method=method), base_digest="b" * 64, task=TASK)
    monkeypatch.setattr(launch, "Registry", lambda uri: SimpleNamespace(resolve=lambda name: adapter))
    monkeypatch.setattr(launch, "pull", lambda name, uri: Path())
    monkeypatch.setattr(launch, "verify", lambda path: manifest)
    space = parse_space(SPACE, source="s.yaml", folder=Path())
    with pytest.raises(UsageError, match=law):
        launch.resolve_start(space, "sqlite:///x.db")


def test_the_head_of_one_variant_answers_another_of_the_same_task() -> None:
    numbers = replace(TASK, kind="regression")  # of which labels do not tell
    german, french = replace(numbers, variant="de"), replace(numbers, variant="fr")
    assert launch.has_same_answers(german, french)
    assert launch.has_same_answers(german, numbers)
    assert not launch.has_same_answers(german, replace(german, name="another"))


@pytest.mark.parametrize(
    ("given", "kept", "with_head"), [("auto", "mean", True), ("class", "class", False), ("mean", "mean", True)]
)
def test_a_study_keeps_the_pooling_and_starts_from_heads_of_the_same_alone(
    given: Pooling, kept: Pooling, with_head: bool
) -> None:
    space = parse_space(SPACE, source="s.yaml", folder=Path(), overrides=[f"task.pooling={given}"])
    assert space.task.pooling == given
    start = StartFrom(AdapterRef("t:1", "d" * 64), "b" * 64, HYPERPARAMETERS, with_head=True, pooling="mean")
    info = replace(study("s").info, task=space.task, start_from=start)
    host = HostInfo(BaseModel("b", "/b", "0"), (), 0, "", {}, "cpu", "float32", {}, pooling="mean")
    kept_info, kept_space = launch.with_pooling(info, space, host)
    assert (kept_info.task.pooling, kept_space.task.pooling) == (kept, kept)
    assert kept_info.start_from == replace(start, with_head=with_head)
