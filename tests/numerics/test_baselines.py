"""Baselines on a host: the bare base's features whatever trials do on it, and trials that do not notice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from loraxs_search.base_model.load import bare_body
from loraxs_search.packing.host import TrialHost
from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.promotion import Baseline
from loraxs_search.tasks.baselines import BASELINES
from loraxs_search.trial.snapshot import Snapshot


@pytest.fixture
def host(world):
    made = TrialHost(BaseModelRef(id=world.base.path), world.data.task, slots=2, precision="float32", device="cpu")
    yield made
    made.close()


def inputs_of(world: Any) -> tuple[Any, ...]:
    return world.data, bare_body(world.model), torch.device("cpu")


def numbers(found: tuple[Baseline, ...]) -> list[Baseline]:
    return [replace(baseline, seconds=0.0) for baseline in found]


def test_a_trial_on_the_base_is_not_in_its_features(host, world):
    before = host.baselines(world.data.task)
    host.advance(world.spec("1", init_std=5.0), 3, None)  # its adapter stays on
    assert numbers(host.baselines(world.data.task)) == numbers(before)


def test_a_trial_trains_on_while_they_are_measured(host, world):
    spec = world.spec("1")
    _, undisturbed = host.advance(spec, 30, None)
    expected = numbers(host.baselines(world.data.task))
    with ThreadPoolExecutor(2) as callers:
        training = callers.submit(host.advance, replace(spec, trial_id="2"), 30, None)
        measured = callers.submit(host.baselines, world.data.task)
        beside = training.result()[1]
        assert numbers(measured.result()) == expected
    states = [Snapshot.from_bytes(state).parameters for state in (undisturbed, beside)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_their_single_thread_is_not_the_hosts(host):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)  # as another thread of the process does
        assert host.in_turn(torch.get_num_threads) == before
    finally:
        torch.set_num_threads(before)


def test_what_is_too_dear_is_decided_by_tokens_and_said(world, monkeypatch):
    monkeypatch.setattr("loraxs_search.tasks.baselines.MAX_TOKENS", 10)
    found = BASELINES.get("features")(*inputs_of(world)).measure()
    assert "tokens, and may read 10" in found.failed
    assert (found.applies, found.validation_metrics) == (False, {})


def test_features_are_means_over_a_rows_own_tokens(world):
    rows = torch.arange(world.data.num_rows("test")).numpy()
    found = BASELINES.get("features")(*inputs_of(world)).states("test", rows)
    with torch.no_grad():
        for row in rows:
            states = world.model.base_model(**world.data.collate("test", [row]).inputs)[0]  # nothing is padded
            torch.testing.assert_close(torch.from_numpy(found[row]), states[0].mean(0), rtol=1e-4, atol=1e-5)
