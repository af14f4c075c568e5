"""Bases whose rows, or layers, cannot share a pass: packs and banks refuse them, lone trials take them as they are."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from loraxs_search import AdapterBank
from loraxs_search.errors import BaseModelError, UsageError
from loraxs_search.packing.host import TrialHost
from loraxs_search.records.task import BaseModelRef
from loraxs_search.trial.snapshot import Snapshot

FAULT = r"of this one what a row gives depends on its padding\."


def hosts(world: Any) -> tuple[TrialHost, TrialHost]:
    """Return a host that chooses for itself, and one of lone trials."""
    ref, task = BaseModelRef(id=world.base.path), world.data.task
    options = {"precision": "float32", "device": "cpu"}
    return TrialHost(ref, task, slots=None, **options), TrialHost(ref, task, **options)


def check_each_is_as_alone(world: Any, specs: list[Any]) -> TrialHost:
    """Advance trials at once on a host that chooses for itself, in two goes; each must be as on a lone host."""
    host, lone = hosts(world)

    def drive(spec: Any) -> tuple[Any, bytes]:
        return host.advance(spec, 10, host.advance(spec, 5, None)[1])

    try:
        with ThreadPoolExecutor(len(specs)) as callers:
            found = list(callers.map(drive, specs))
        for spec, (report, state) in zip(specs, found, strict=True):
            expected, reference = lone.advance(spec, 10, lone.advance(spec, 5, None)[1])
            assert world.distance(Snapshot.from_bytes(state), Snapshot.from_bytes(reference)) < 1e-5
            assert report.metrics == pytest.approx(expected.metrics, rel=1e-5)
            rows = range(host.info().num_rows["test"])
            assert host.answer(spec, state, rows).predictions == lone.answer(spec, state, rows).predictions
            assert host.answer(spec, state, rows).loss == pytest.approx(lone.answer(spec, state, rows).loss, rel=1e-5)
    finally:
        host.close()
    return host


def test_a_base_whose_rows_depend_on_their_padding_is_refused_by_packs_and_banks(make_world):
    world = make_world("convbert")
    with pytest.raises(BaseModelError, match=FAULT) as refused:
        world.pack()
    assert "`search.pack_size` to 1 or auto" in str(refused.value.hint)
    with pytest.raises(BaseModelError, match=FAULT):
        TrialHost(BaseModelRef(id=world.base.path), world.data.task, slots=2, device="cpu")
    with pytest.raises(BaseModelError, match=f"Adapters of a bank share passes only on .*{FAULT}"):
        AdapterBank(world.base)


def test_on_such_a_base_a_host_that_chooses_lets_trials_take_turns(make_world, caplog):
    world = make_world("convbert")
    with caplog.at_level(logging.WARNING):
        host = check_each_is_as_alone(world, [world.spec("1"), world.spec("2", rank=8, batch_size=5)])
    assert "Trials take turns, since of this base what a row gives depends on its padding" in caplog.text
    assert host._num_slots == 1


def test_trials_that_can_share_passes_and_others_share_a_host_that_chooses(make_world):
    world = make_world("deberta")
    packable = tuple(name for name in world.names if not name.endswith(("query_proj", "key_proj")))
    specs = [world.spec("1"), world.spec("2", target_modules=packable), world.spec("3", target_modules=packable[::2])]
    host = check_each_is_as_alone(world, specs)
    assert host._num_slots > 1


def test_another_task_is_told_what_it_cannot_have(make_world, other_data):
    world = make_world("deberta")
    host, _ = hosts(world)
    assert not host.info().unpackable
    assert len(host.info(other_data.task).unpackable) == 4
    with pytest.raises(UsageError, match="query_proj"):
        host.advance(world.spec("1"), 2, None, other_data.task)
    host.close()
