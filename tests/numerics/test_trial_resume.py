"""A trial taken up from its snapshot is the trial that was never interrupted, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loraxs_search.packing.host import TrialHost
from loraxs_search.records.literals import Precision
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.space import Space
from loraxs_search.trial.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("in_warm_home")


@pytest.fixture(scope="module")
def space(tiny_space_text: str) -> Space:
    return parse_space(tiny_space_text, source="tiny.yaml", folder=Path("/"))


@pytest.fixture(scope="module")
def host(space: Space, warm_home: Path) -> TrialHost:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(warm_home))
        return TrialHost(space.base_model, space.task, precision="float32")


def spec(host: TrialHost, space: Space, trial_id: str = "00000", **changes: object) -> TrialSpec:
    params = {"rank": 4, "target_modules": "all-linear", "learning_rate": 3e-2, "head_learning_rate": 1e-2}
    hyper = space.hyperparameters({**params, "batch_size": 8}, host.info().modules, seed=11)
    return TrialSpec(trial_id, params, replace(hyper, max_steps=12, weight_decay=0.01, **changes))


def assert_same_bits(a: Snapshot, b: Snapshot) -> None:
    assert a.step == b.step
    assert a.parameters.keys() == b.parameters.keys()
    assert all(torch.equal(a.parameters[k], b.parameters[k]) for k in a.parameters)
    assert all(torch.equal(a.moments[k], b.moments[k]) for k in a.moments)
    assert [(r.step, r.metrics, r.train_loss) for r in a.reports] == [
        (r.step, r.metrics, r.train_loss) for r in b.reports
    ]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_fresh_host_goes_on_bit_for_bit(space: Space, precision: Precision) -> None:
    whole, early, late = (TrialHost(space.base_model, space.task, precision=precision) for _ in range(3))
    trial = spec(whole, space)
    undisturbed = None
    for until in (4, 8, 12):
        _, undisturbed = whole.advance(trial, until, undisturbed)
    _, state = early.advance(trial, 4, None)
    for until in (8, 12):
        _, state = late.advance(trial, until, state)
    assert undisturbed is not None
    assert_same_bits(Snapshot.from_bytes(undisturbed), Snapshot.from_bytes(state))


def test_taking_turns_on_a_host_changes_no_bit(host: TrialHost, space: Space) -> None:
    first, second = spec(host, space), spec(host, space, "00001", rank=2, learning_rate=1e-2, seed=5)
    states: dict[str, bytes | None] = {first.trial_id: None, second.trial_id: None}
    for until in (4, 8, 12):
        for trial in (first, second):
            _, states[trial.trial_id] = host.advance(trial, until, states[trial.trial_id])
    for trial in (first, second):
        alone = None
        for until in (4, 8, 12):
            _, alone = host.advance(trial, until, alone)
        assert_same_bits(Snapshot.from_bytes(alone), Snapshot.from_bytes(states[trial.trial_id]))


def test_snapshot_bytes_are_the_same_for_the_same_state(host: TrialHost, space: Space) -> None:
    _, state = host.advance(spec(host, space), 4, None)
    assert Snapshot.from_bytes(state).to_bytes() == state


def test_a_trial_that_cannot_begin_leaves_the_host_as_it_was(
    host: TrialHost, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = spec(host, space), spec(host, space, "00001", rank=2, seed=9)
    _, before = host.advance(good, 4, None)
    with monkeypatch.context() as broken:
        broken.setattr("loraxs_search.packing.pack.Slot", _no_memory)
        with pytest.raises(MemoryError):
            host.advance(bad, 4, None)
    _, after = host.advance(good, 4, None)
    assert_same_bits(Snapshot.from_bytes(before), Snapshot.from_bytes(after))


def _no_memory(*_: object) -> None:
    raise MemoryError
