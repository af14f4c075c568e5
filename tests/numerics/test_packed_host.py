"""A packed host serves many callers at once, and each gets what a host of its own would give."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from loraxs_search import AdapterBank
from loraxs_search.base_model.load import bare_body
from loraxs_search.errors import BaseModelError, TaskDataError, UsageError
from loraxs_search.packing import capacity
from loraxs_search.packing import host as host_module
from loraxs_search.packing.host import LoadedBase, TrialHost
from loraxs_search.records.task import BaseModelRef
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search.driver.work_items import joined
from loraxs_search.tasks.baselines import BASELINES
from loraxs_search.trial.evaluate import score_folder
from loraxs_search.trial.snapshot import Snapshot

from .conftest import save_adapter


@pytest.fixture
def make_host(world):
    """Make a host: of one trial at a time with `slots=1`, and with None of as many as it finds right."""
    made: list[TrialHost] = []

    def make(slots: int | None = 4, of: Any = world, **options: Any) -> TrialHost:
        ref = BaseModelRef(id=of.base.path)
        options = {"precision": "float32", "device": "cpu", **options}
        made.append(TrialHost(ref, of.data.task, slots=slots, **options))
        return made[-1]

    yield make
    for host in made:
        host.close()


def distance(world: Any, state: bytes, other: bytes) -> float:
    return float(world.distance(Snapshot.from_bytes(state), Snapshot.from_bytes(other)))


def check_each_is_as_alone(world: Any, host: TrialHost, specs: Sequence[TrialSpec]) -> TrialHost:
    """Advance trials at once, all to their own steps on the way to the last; each must be as on the lone host."""
    specs = [replace(s, hyperparameters=replace(s.hyperparameters, max_steps=12)) for s in specs]

    def drive(index: int) -> Any:
        report, state = None, None
        for until in (*range(2 + index, 12, 3 + index), 12):
            report, state = host.advance(specs[index], until, state)
        return report, state

    with ThreadPoolExecutor(len(specs)) as callers:
        found = list(callers.map(drive, range(len(specs))))
    lone = TrialHost(BaseModelRef(id=world.base.path), world.data.task, precision="float32", device="cpu")
    rows = range(host.info().num_rows["test"])
    for spec, (report, state) in zip(specs, found, strict=True):
        expected, reference = lone.advance(spec, 12, None)
        assert distance(world, state, reference) < 1e-5
        assert (report.step, report.num_tokens, report.size) == (12, expected.num_tokens, expected.size)
        assert report.metrics == pytest.approx(expected.metrics, rel=1e-5)
        assert report.device_s > 0
        answers, alone = (each.answer(spec, state, rows) for each in (host, lone))
        assert answers.predictions == alone.predictions
        assert answers.loss == pytest.approx(alone.loss, rel=1e-5)
    return lone


def test_callers_at_once_get_what_lone_hosts_give(world, make_host):
    host = make_host(slots=4)
    lone = check_each_is_as_alone(world, host, world.mixed_specs())  # more callers than slots
    assert host.info() == replace(lone.info(), num_slots=4, full_slots=host.info().full_slots)


def test_a_forgotten_trial_goes_on_from_its_snapshot_and_a_closed_host_takes_no_calls(world, make_host):
    host, spec = make_host(slots=1), world.spec("1")
    _, going_on = host.advance(spec, 6, host.advance(spec, 3, None)[1])
    _, state = host.advance(spec, 3, None)  # an older state than the host's: the caller's counts
    host.advance(world.spec("2"), 2, None)
    _, taken_up = host.advance(spec, 6, state)
    assert distance(world, taken_up, going_on) == 0.0
    host.close()
    with pytest.raises(RuntimeError, match="closed"):
        host.advance(spec, 7, taken_up)


# ---- rounds ----------------------------------------------------------------------------------------------------------
def sizes_of_rounds(host: TrialHost) -> list[int]:
    """Return a list to which each round adds how many trials it has."""
    sizes, step = list[int](), host._shared.step

    def counted(slots: Any) -> Any:
        sizes.append(len(slots))
        return step(slots)

    host._shared.step = counted  # type: ignore[method-assign]
    return sizes


def test_callers_who_are_answered_together_go_on_together(world, make_host):
    host = make_host(slots=2, linger_s=5.0)
    sizes = sizes_of_rounds(host)
    with ThreadPoolExecutor(2) as callers:
        states = list(callers.map(lambda i: host.advance(world.spec(i), 3, None)[1], ["1", "2"]))
        sizes.clear()
        list(callers.map(lambda i: host.advance(world.spec(i), 6, states[int(i) - 1]), ["1", "2"]))
    assert sizes == [2, 2, 2]


def test_the_first_round_waits_for_trials_that_start_one_after_another(world, make_host):
    host = make_host(slots=2, linger_s=0.0, gather_s=60.0)
    sizes = sizes_of_rounds(host)
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(host.advance, world.spec("1"), 3, None)
        with host._changed:
            assert host._changed.wait_for(lambda: bool(host._arrived) or bool(sizes), 60)
        host.advance(world.spec("2"), 3, None)
        first.result()
    assert sizes == [2, 2, 2]


def test_a_report_names_those_who_were_scored_with_it(world, make_host):
    host, metric = make_host(slots=3, linger_s=5.0), world.data.task.metric
    specs = [replace(world.spec(i), study=study) for i, study in (("1", "mine"), ("2", "mine"), ("3", "other"))]
    with ThreadPoolExecutor(3) as callers:
        first, second, third = callers.map(lambda spec: host.advance(spec, 3, None)[0], specs)
    assert first.peers == {"2": (3, second.metrics[metric])}
    assert second.peers == {"1": (3, first.metrics[metric])}
    assert third.peers == {}


# ---- what goes wrong -------------------------------------------------------------------------------------------------
def test_a_fault_between_or_in_rounds_is_an_answer_and_the_host_goes_on(world, make_host, monkeypatch):
    host, spec = make_host(), world.spec("1")

    def fail(*_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(host, "_wanted", fail)
        host.advance(spec, 5, None)
    with host._loaded.model.register_forward_pre_hook(lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
        host.advance(spec, 1, None)
    assert torch.is_grad_enabled()
    assert host.advance(spec, 2, None)[0].step == 2


def test_a_pass_that_memory_does_not_hold_takes_for_ever(world):
    assert 0 < capacity.time_pass(world.model, 64) < 60

    def runs_out(*_: Any) -> None:
        raise torch.OutOfMemoryError

    with world.model.register_forward_pre_hook(runs_out):
        assert capacity.time_pass(world.model, 64) == float("inf")


def test_of_a_further_task_only_the_head_is_loaded_onto_the_device(world, other_data, monkeypatch):
    """A second body beside the first may be more than the device holds."""
    devices, load = [], host_module.load_model

    def watched(*arguments: Any, **options: Any) -> Any:
        devices.append(str(options["device"]))
        return load(*arguments, **options)

    monkeypatch.setattr(host_module, "load_model", watched)
    loaded = LoadedBase(BaseModelRef(id=world.base.path), world.data.task, precision="float32", device="cpu:0")
    loaded.exact_for(other_data.task)
    assert devices == ["cpu:0", "cpu"]


def test_the_base_is_decomposed_as_it_is_while_slots_are_seated(make_world, make_host, fresh_home):
    world = make_world("gpt2")  # whose layers keep their weights as (in, out)
    host = make_host(2, world)
    host.advance(world.spec("1", factor_rank=8), 2, None)
    stored = set(fresh_home.glob("factors/*/*"))
    assert len(stored) == len(world.names)
    host.decompose(world.names, 8, "top")
    assert set(fresh_home.glob("factors/*/*")) == stored


# ---- bases whose rows, or layers, cannot share a pass ----------------------------------------------------------------
def test_a_base_whose_rows_depend_on_their_padding_is_refused_and_a_host_that_chooses_lets_trials_take_turns(
    make_world, make_host, caplog
):
    world, fault = make_world("convbert"), r"of this one what a row gives depends on its padding\."
    with pytest.raises(BaseModelError, match=fault) as refused:
        world.pack()
    assert "`search.pack_size` to 1 or auto" in str(refused.value.hint)
    with pytest.raises(BaseModelError, match=fault):
        make_host(2, world)
    with pytest.raises(BaseModelError, match=f"Adapters of a bank share passes only on .*{fault}"):
        AdapterBank(world.base)
    with caplog.at_level(logging.WARNING):
        host = make_host(None, world)
        check_each_is_as_alone(world, host, [world.spec("1"), world.spec("2", rank=8, batch_size=5)])
    assert "Trials take turns, since of this base what a row gives depends on its padding" in caplog.text
    assert host._num_slots == 1


def test_trials_that_can_share_passes_and_others_share_a_host_that_chooses(make_world, make_host, other_data):
    world = make_world("deberta")
    packable = tuple(name for name in world.names if not name.endswith(("query_proj", "key_proj")))
    specs = [world.spec("1"), world.spec("2", target_modules=packable), world.spec("3", target_modules=packable[::2])]
    host = make_host(None, world)
    check_each_is_as_alone(world, host, specs)
    assert host._num_slots > 1
    assert not host.info().unpackable
    assert len(host.info(other_data.task).unpackable) == 4
    with pytest.raises(UsageError, match="query_proj"):
        host.advance(world.spec("1"), 2, None, other_data.task)


# ---- baselines -------------------------------------------------------------------------------------------------------
def test_a_trial_on_the_base_is_not_in_its_features_and_their_single_thread_is_not_the_hosts(make_host, world):
    host, own = make_host(2), torch.get_num_threads()
    before = host.in_turn(torch.get_num_threads)  # pass workers of an earlier host may have left new threads with one
    first = host.baselines(world.data.task)
    host.advance(world.spec("1", init_std=5.0), 3, None)  # its adapter stays on
    again = host.baselines(world.data.task)
    assert [replace(one, seconds=0.0) for one in again] == [replace(one, seconds=0.0) for one in first]
    try:
        torch.set_num_threads(before + 1)  # as another thread of the process does
        assert host.in_turn(torch.get_num_threads) == before
    finally:
        torch.set_num_threads(own)


def test_what_is_too_dear_is_decided_by_tokens_and_said(world, monkeypatch):
    monkeypatch.setattr("loraxs_search.tasks.baselines.MAX_TOKENS", 10)
    found = BASELINES.get("features")(world.data, bare_body(world.model), torch.device("cpu")).measure()
    assert "tokens, and may read 10" in found.failed
    assert (found.applies, found.validation_metrics) == (False, {})


# ---- confirmation ----------------------------------------------------------------------------------------------------
def test_answers_add_up_to_the_score_that_the_folder_has_anew_and_its_files_tell_their_base(world, make_host, tmp_path):
    host, task = make_host(1), world.data.task
    spec = world.spec("7", learning_rate=0.05, stored_dtype="int8")
    report, state = host.advance(spec, 6, None)
    chosen_on, _ = joined(
        [host.answer(spec, state, range(world.data.num_rows("validation")), None, "validation")], task
    )
    assert report.metrics == pytest.approx(chosen_on, rel=1e-6)
    parts = [host.answer(spec, state, rows) for rows in (range(5), range(5, world.data.num_rows("test")))]
    metrics, rows = joined(parts, task)  # as two hosts give them
    np.testing.assert_array_equal(rows.labels, world.data.labels("test"))
    assert metrics["accuracy"] == pytest.approx(np.mean(rows.predictions == rows.labels))
    folder = tmp_path / "adapter"
    save_adapter(folder, host, spec, state, task)
    anew = score_folder(folder, task)
    assert anew.metrics == pytest.approx(metrics, rel=1e-6)
    said = anew.answers
    assert len(said.wrong) == min(20, np.sum(rows.predictions != rows.labels))
    assert all(sample.reference != sample.answer and sample.prompt for sample in said.wrong)
    assert (said.predictions, said.labels) == (tuple(rows.predictions.tolist()), tuple(rows.labels.tolist()))
    assert anew.data_fingerprint == world.data.data_fingerprint
    assert anew.test_fingerprint == world.data.test_fingerprint
    with pytest.raises(TaskDataError, match="labels"):
        score_folder(folder, replace(task, labels=("x", "y")))
    base, same = (AutoModelForSequenceClassification.from_pretrained(world.base.path, num_labels=2) for _ in range(2))
    PeftModel.from_pretrained(same, str(folder))  # PEFT alone loads it
    base.base_model.get_input_embeddings().weight.data.mul_(1.01)
    with pytest.raises(BaseModelError, match="fingerprint"):
        PeftModel.from_pretrained(base, str(folder))
