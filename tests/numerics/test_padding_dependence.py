"""Bases whose rows, or layers, cannot share a pass: packs and banks refuse them, lone trials take them as they are."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from support.trials import train

from loraxs_search import AdapterBank
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.errors import BaseModelError, UsageError
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.packing.host import TrialHost
from loraxs_search.records.base import BaseModelRef
from loraxs_search.tasks.encoded import RowSource
from loraxs_search.tasks.prepared import encode
from loraxs_search.trial.attach import attach
from loraxs_search.trial.snapshot import Snapshot

LONG = pytest.mark.long(part="bases")
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


@LONG
def test_rows_of_xlnet_do_not_depend_on_their_neighbours(make_world):
    """Its head reads the last position: padding stands on the left, in training, scoring and prediction."""
    world = make_world("xlnet")
    with use_factor_store(world.factors):
        model = attach(world.model, world.spec("1", init_std=0.5))
    lengths = world.data.lengths("validation")
    rows = [int(lengths.argmin()), int(lengths.argmax())]
    batch = world.data.collate("validation", rows).inputs
    assert batch["attention_mask"][0].tolist() == [0] * int(lengths.max() - lengths.min()) + [1] * int(lengths.min())
    with torch.no_grad():
        together = model(**batch).logits
        alone = torch.cat([model(**world.data.collate("validation", [row]).inputs).logits for row in rows])
        texts = ["w1 w2", "w3 w4 w5 w6 w7 w8 w9"]
        source = RowSource(load_tokenizer(world.base))
        asked = encode(world.data.kind, source.tokenizer, [(text,) for text in texts])
        predicted = model(**source.collate(asked, [0, 1]).inputs).logits
        by_itself = torch.cat([model(**source.collate(asked, [row]).inputs).logits for row in (0, 1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predicted, by_itself, rtol=1e-4, atol=1e-5)


@LONG
def test_layers_of_xlnet_are_adapted_by_lone_trials_and_the_machine_knows(make_world):
    world = make_world("xlnet")
    with pytest.raises(UsageError, match=r"layer\.0\.ff\.layer_1 \(and 3 more\)"):
        world.pack().join(world.spec("1"), world.data)
    host = check_each_is_as_alone(world, [world.spec("1"), world.spec("2", rank=8)])
    assert host._num_slots == 1


@LONG
def test_longformer_shares_what_it_gives_rows_and_no_layer_of_its_global_attention(make_world):
    world = make_world("longformer")
    pack = world.pack(num_workers=2)
    shared = tuple(name for name in world.names if ".self." in name)
    assert {name.rpartition(".")[2] for name in shared} >= {"query_global", "key_global", "value_global"}
    assert pack.base.unpackable == set(shared)
    with pytest.raises(UsageError, match="query_global"):
        pack.join(world.spec("1", target_modules=[name for name in shared if name.endswith("_global")]), world.data)
    others = tuple(name for name in world.names if name not in shared)
    slots = world.join(pack, [world.spec("1", target_modules=others), world.spec("2", target_modules=others[1::2])])
    train(pack, slots, 10)
    world.check_as_alone(pack, slots)


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
