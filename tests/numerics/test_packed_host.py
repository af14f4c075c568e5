"""A packed host serves many callers at once, and each gets what a host of its own would give."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from loraxs_search.base_model.load import bare_body
from loraxs_search.errors import BaseModelError, TaskDataError
from loraxs_search.packing import capacity
from loraxs_search.packing import host as host_module
from loraxs_search.packing.host import LoadedBase, TrialHost
from loraxs_search.records.search import Baseline
from loraxs_search.records.task import BaseModelRef
from loraxs_search.search.driver.work_items import joined
from loraxs_search.tasks.baselines import BASELINES
from loraxs_search.trial.evaluate import score_folder
from loraxs_search.trial.snapshot import Snapshot

from .test_standardized_targets import save


@pytest.fixture
def make_host(world):
    made: list[TrialHost] = []

    def make(slots: int | None = 4, of: Any = world, **options: Any) -> TrialHost:
        ref = BaseModelRef(id=of.base.path)
        options = {"precision": "float32", "device": "cpu", **options}
        made.append(TrialHost(ref, of.data.task, slots=slots, **options))
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.fixture
def distance(world):
    return lambda a, b: world.distance(Snapshot.from_bytes(a), Snapshot.from_bytes(b))


def test_callers_at_once_get_what_lone_hosts_give(world, make_host, distance):
    specs, host = world.mixed_specs(), make_host(slots=4)  # two more callers than slots

    def drive(index: int) -> tuple[Any, bytes]:
        state = None
        for until in range(2 + index, 100, 3 + index):  # all stop at their own steps; the last one at max_steps
            report, state = host.advance(specs[index], until, state)
            if report.step == specs[index].hyperparameters.max_steps:
                break
        return report, state

    specs = [replace(s, hyperparameters=replace(s.hyperparameters, max_steps=12)) for s in specs]
    with ThreadPoolExecutor(len(specs)) as callers:
        found = list(callers.map(drive, range(len(specs))))
    lone = TrialHost(BaseModelRef(id=world.base.path), world.data.task, precision="float32", device="cpu")
    for spec, (report, state) in zip(specs, found, strict=True):
        expected, reference = lone.advance(spec, 12, None)
        assert distance(state, reference) < 1e-5
        assert (report.step, report.num_tokens, report.size) == (12, expected.num_tokens, expected.size)
        assert report.metrics == pytest.approx(expected.metrics, rel=1e-5)
        assert report.device_s > 0
    assert host.info() == replace(lone.info(), num_slots=4, full_slots=host.info().full_slots)


def test_memory_that_ends_between_rounds_is_an_answer_and_the_host_goes_on(world, make_host, monkeypatch):
    def fail(*_: Any) -> Any:
        raise MemoryError

    host = make_host()
    with monkeypatch.context() as patch:
        patch.setattr(host, "_wanted", fail)
        with pytest.raises(MemoryError):
            host.advance(world.spec("1"), 5, None)
    assert host.advance(world.spec("1"), 2, None)[0].step == 2


def test_a_forgotten_trial_goes_on_from_its_snapshot_and_a_closed_host_takes_no_calls(world, make_host, distance):
    host, spec = make_host(slots=1), world.spec("1")
    _, going_on = host.advance(spec, 6, host.advance(spec, 3, None)[1])
    _, state = host.advance(spec, 3, None)  # an older state than the host's: the caller's counts
    host.advance(world.spec("2"), 2, None)
    _, taken_up = host.advance(spec, 6, state)
    assert distance(taken_up, going_on) == 0.0
    host.close()
    with pytest.raises(RuntimeError, match="closed"):
        host.advance(spec, 7, taken_up)


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


def test_a_fault_of_the_host_reaches_every_waiting_caller(world, make_host):
    host = make_host()
    host._loaded.model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        host.advance(world.spec("1"), 1, None)
    assert torch.is_grad_enabled()


def test_a_pass_that_memory_does_not_hold_takes_for_ever(world, make_host):
    host = make_host()
    assert 0 < capacity.time_pass(host._loaded.model, 64) < 60

    def runs_out(*_: Any) -> None:
        raise torch.OutOfMemoryError

    hook = host._loaded.model.register_forward_pre_hook(runs_out)
    assert capacity.time_pass(host._loaded.model, 64) == float("inf")
    hook.remove()


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


def test_the_base_is_decomposed_as_it_is_while_slots_are_seated(make_world, fresh_home):
    world = make_world("gpt2")  # whose layers keep their weights as (in, out)
    host = TrialHost(BaseModelRef(id=world.base.path), world.data.task, slots=2, precision="float32", device="cpu")
    host.advance(world.spec("1", factor_rank=8), 2, None)
    stored = set(fresh_home.glob("factors/*/*"))
    assert len(stored) == len(world.names)
    host.decompose(world.names, 8, "top")
    assert set(fresh_home.glob("factors/*/*")) == stored
    host.close()


# ---- baselines -------------------------------------------------------------------------------------------------------
def inputs_of(world: Any) -> tuple[Any, ...]:
    return world.data, bare_body(world.model), torch.device("cpu")


def numbers(found: tuple[Baseline, ...]) -> list[Baseline]:
    return [replace(baseline, seconds=0.0) for baseline in found]


def test_a_trial_on_the_base_is_not_in_its_features(make_host, world):
    host = make_host(2)
    before = host.baselines(world.data.task)
    host.advance(world.spec("1", init_std=5.0), 3, None)  # its adapter stays on
    assert numbers(host.baselines(world.data.task)) == numbers(before)


def test_their_single_thread_is_not_the_hosts(make_host):
    host, before = make_host(2), torch.get_num_threads()
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


# ---- confirmation ----------------------------------------------------------------------------------------------------
@pytest.fixture
def confirmed(world, make_host):
    host, spec = make_host(1), world.spec("7", learning_rate=0.05)
    return spec, host.advance(spec, 6, None)[1], host


@pytest.fixture
def scores(world, confirmed):
    """Metrics and answers on the test split, in two parts as two hosts give them."""
    spec, snapshot, host = confirmed
    parts = [host.answer(spec, snapshot, rows) for rows in (range(5), range(5, world.data.num_rows("test")))]
    return joined(parts, world.data.task)


@pytest.fixture
def folder(world, confirmed, tmp_path):
    spec, snapshot, host = confirmed
    save(tmp_path / "adapter", host, spec, snapshot, world.data.task)
    return tmp_path / "adapter"


def test_answers_come_in_test_order_and_add_up_to_the_score(world, scores):
    metrics, rows = scores
    np.testing.assert_array_equal(rows.labels, world.data.labels("test"))
    assert metrics["accuracy"] == pytest.approx(np.mean(rows.predictions == rows.labels))


def test_a_folder_scored_anew_gives_the_same_answers(world, scores, folder):
    metrics, rows = scores
    anew = score_folder(folder, world.data.task)
    assert anew.metrics == pytest.approx(metrics, rel=1e-6)
    said = anew.answers
    assert len(said.wrong) == min(20, np.sum(rows.predictions != rows.labels))
    assert all(sample.reference != sample.answer and sample.prompt for sample in said.wrong)
    assert (said.predictions, said.labels) == (tuple(rows.predictions.tolist()), tuple(rows.labels.tolist()))
    assert anew.data_fingerprint == world.data.data_fingerprint
    assert anew.test_fingerprint == world.data.test_fingerprint
    other = dataclasses.replace(world.data.task, labels=("x", "y"))
    with pytest.raises(TaskDataError, match="labels"):
        score_folder(folder, other)


def test_the_files_tell_their_base_also_where_peft_alone_loads_them(world, folder):
    base, same = (AutoModelForSequenceClassification.from_pretrained(world.base.path, num_labels=2) for _ in range(2))
    PeftModel.from_pretrained(same, str(folder))
    base.base_model.get_input_embeddings().weight.data.mul_(1.01)
    with pytest.raises(BaseModelError, match="fingerprint"):
        PeftModel.from_pretrained(base, str(folder))
