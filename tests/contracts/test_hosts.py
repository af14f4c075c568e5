"""What every host keeps to, alone or packed, with labels and with answers that are written; see `packing/host.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.spaces import SPACE
from support.toy_language import save_base, save_rows

from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.packable import Sharing
from loraxs_search.errors import LoraxsError, StudyError, TrialCancelledError, TrialDivergedError, UsageError
from loraxs_search.home import factor_path
from loraxs_search.packing.host import TrialHost
from loraxs_search.records.adapter import Answers, LargestTrial
from loraxs_search.records.trial import Hyperparameters, TrialSpec
from loraxs_search.registry.factor_sets import factors_at
from loraxs_search.search.driver.work_items import joined
from loraxs_search.search.hosts.host_actor import HostConfig
from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.space import Space
from loraxs_search.studies.snapshots import read_reports
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.trial.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("in_warm_home")  # factors stay there for the whole module


@pytest.fixture(scope="module")
def space(tiny_base):
    text = SPACE.format(task="contract", base=tiny_base, trials=1, steps=8, every=2, promotion="{}")
    text = text.replace("  max_length: 32", "  max_length: 32\n  slices: [sentiment]")
    return parse_space(text, source="contract.yaml", folder=Path("/"))


@pytest.fixture(scope="module")
def task(space):
    return space.task


def made(space: Space, home: Path, pack_size: Any, *, can_share: bool = True) -> Iterator[TrialHost]:
    """Yield a host as a search asks for it by the size of its packs."""
    config = HostConfig(space.base_model, "float32", pack_size, LargestTrial(8, (("lora-xs", {"rank": 4}),)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(home))
        if not can_share:
            patch.setattr("loraxs_search.packing.host.probe_sharing", lambda _, names: Sharing("", names))
        host = HostConfig.make(config, space.task, torch.get_num_threads())
    yield host
    host.close()
    host.close()  # a second time does nothing


@pytest.fixture(scope="module", params=["unpacked", "auto"])
def host(request, space, warm_home):
    """One on whose base no layer can share passes, and one that packs."""
    packs = request.param == "auto"
    yield from made(space, warm_home, "auto" if packs else 1, can_share=packs)


@pytest.fixture
def make_spec(space, task, in_warm_home):
    names = tuple(module.name for module in linear_modules(locate(space.base_model), kind_of(task).model))

    def spec(trial_id: str, **changes: Any) -> TrialSpec:
        values: dict[str, Any] = {"rank": 2, "target_modules": names[:4], "batch_size": 8, "max_steps": 8}
        rates = {"learning_rate": 1e-2, "head_learning_rate": 1e-2, "init_std": 1e-2, "seed": int(trial_id)}
        return TrialSpec(trial_id, {}, Hyperparameters(**{**values, **rates, **changes}))

    return spec


def numbers(snapshot: bytes) -> dict[str, Any]:
    read = Snapshot.from_bytes(snapshot)
    return {name: value.tolist() for name, value in (read.parameters | read.moments).items()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_fresh_host_goes_on_bit_for_bit(space, make_spec, precision):
    whole, early, late = (TrialHost(space.base_model, space.task, precision=precision) for _ in range(3))
    spec = make_spec("13", max_steps=12, weight_decay=0.01)
    _, undisturbed = whole.advance(spec, 8, whole.advance(spec, 4, None)[1])
    _, first = early.advance(spec, 4, None)
    assert Snapshot.from_bytes(first).to_bytes() == first
    _, state = late.advance(spec, 8, first)
    (report, after), (again, resumed) = whole.advance(spec, 12, undisturbed), late.advance(spec, 12, state)
    assert (again.metrics, again.train_loss) == (report.metrics, report.train_loss)
    assert numbers(resumed) == numbers(after)
    assert [each.step for each in read_reports(resumed)] == [4, 8, 12]


def test_a_report_comes_with_the_state_to_keep_and_the_callers_state_counts(host, make_spec, task):
    """A caller whose host, or whose node, was lost before it answered asks again, of whatever host."""
    spec = make_spec("1")
    first, early = host.advance(spec, 3, None, task)
    second, late = host.advance(spec, 5, early, task)
    assert [(r.trial_id, r.step) for r in (first, second)] == [("1", 3), ("1", 5)]
    assert set(second.metrics) == {*task.metrics, "loss", "calibration_error"}
    assert all(type(value) is float for value in second.metrics.values())
    assert read_reports(late) == (first, second)
    again, repeated = host.advance(spec, 5, early, task)  # the host has the trial at step 5
    assert (again.metrics, numbers(repeated)) == (second.metrics, numbers(late))
    scored, same = host.advance(spec, 5, late, task)  # it stands there already: nothing is trained
    assert (scored.step, scored.metrics, scored.num_tokens) == (5, second.metrics, second.num_tokens)
    assert numbers(same) == numbers(late)
    host.decompose(spec.hyperparameters.target_modules, 4, "top")  # changes nothing
    anew, restarted = host.advance(spec, 3, None, task)
    assert (anew.step, numbers(restarted)) == (3, numbers(early))
    slower = replace(spec, hyperparameters=replace(spec.hyperparameters, learning_rate=1e-4))
    assert numbers(host.advance(slower, 5, early, task)[1]) != numbers(late), "another trial of this name"
    assert host.advance(spec, 100, late, task)[0].step == 8, "a trial has `max_steps` and no more"


def test_a_trial_says_how_far_it_is_and_is_given_up_before_its_next_step(host, make_spec, task):
    """And its last state is what it goes on from, if somebody asks for it again."""
    spec = make_spec("9", max_steps=1_000_000)
    _, state = host.advance(spec, 2, None, task)
    while host.steps():  # a step late; the test's own limit ends it
        time.sleep(0.01)
    host.cancel([spec.name])  # nobody waits for it: nothing is remembered
    undisturbed, _ = host.advance(spec, 4, state, task)
    seen: list[int] = []
    with ThreadPoolExecutor(1) as caller:
        answer = caller.submit(host.advance, spec, 1_000_000, state, task)
        while not answer.done():
            seen += host.steps().values()
            if seen and seen[-1] >= 4:
                host.cancel([spec.name, "another/00000"])
            wait([answer], timeout=0.01)
        with pytest.raises(TrialCancelledError, match="stopped"):
            answer.result()
    assert seen == sorted(seen)
    assert seen[0] >= 2
    while host.steps():
        time.sleep(0.01)
    assert host.advance(spec, 4, state, task)[0].metrics == undisturbed.metrics


FAULTS: dict[str, tuple[dict[str, Any], bytes | None, type[LoraxsError]]] = {
    "diverges": ({"learning_rate": 1e30, "head_learning_rate": 1e30, "warmup_ratio": 0.0}, None, TrialDivergedError),
    "no such layer": ({"target_modules": ("nowhere",)}, None, UsageError),
    "too large a rank": ({"rank": 1000}, None, UsageError),
    "torn snapshot": ({}, b"torn", StudyError),
}


def test_what_goes_wrong_with_a_trial_is_its_callers_alone(host, make_spec, task):
    good = make_spec("5")
    _, state = host.advance(good, 2, None, task)
    for changes, snapshot, error in FAULTS.values():
        with pytest.raises(error):
            host.advance(make_spec("6", **changes), 8, snapshot, task)
        assert host.advance(good, 4, state, task)[0].step == 4


def test_an_adapter_is_written_and_asked_between_rounds(host, make_spec, task):
    spec, other = make_spec("7"), make_spec("8")
    _, state = host.advance(spec, 4, None, task)
    _, others = host.advance(other, 2, None, task)
    confirmation = host.confirm(spec, state, task)
    assert set(confirmation.files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert host.confirm(spec, state, task) == confirmation
    assert len(confirmation.factors) == len(spec.hyperparameters.target_modules)
    for key, checksum in confirmation.factors.items():
        assert factors_at(key, checksum, unchecked=True)
        assert host.factor_file(key) == factor_path(key).read_bytes()
    whole, parts = host.answer(spec, state, range(40), task), [range(25), range(25, 40)]
    predictions = [value for rows in parts for value in host.answer(spec, state, rows, task).predictions]
    assert list(whole.predictions) == predictions
    assert len(whole.labels) == len(whole.confidences or ()) == 40
    assert host.answer(spec, state, range(10), task, "validation").slices == {}, "of test rows alone"
    assert whole.slices == {"sentiment": tuple(task.labels[label] for label in whole.labels)}
    assert host.advance(other, 4, others, task)[0].step == 4


def test_of_a_method_without_an_adapter_no_weights_are_kept_in_the_end(host, make_spec, task):
    spec = make_spec("14", method="full", rank=0, learning_rate=1e-4, max_steps=4)
    first, early = host.advance(spec, 2, None, task)
    last, state = host.advance(spec, 4, early, task)
    assert numbers(early)
    assert (numbers(state), read_reports(state)) == ({}, (first, last))


def test_reports_and_candidates_may_be_scored_by_different_metrics(host, make_spec, task):
    spec, by_f1 = make_spec("12"), replace(task, report_metric="f1", report_direction="maximize", validation_rows=20)
    first, state = host.advance(spec, 2, None, by_f1)
    assert set(first.metrics) == {*task.metrics, "f1", "loss", "calibration_error"}
    again, _ = host.advance(spec, 2, state, by_f1.for_candidates)
    every_row = replace(task, validation_rows=None)
    assert (again.step, set(again.metrics)) == (2, {*task.metrics, "loss", "calibration_error"})
    assert again.metrics == pytest.approx(host.advance(spec, 2, state, every_row)[0].metrics)
    assert again.metrics["loss"] != pytest.approx(first.metrics["loss"], rel=1e-5)
    assert host.answer(spec, state, range(10), by_f1) == host.answer(spec, state, range(10), task)


def test_it_says_what_it_has_loaded_and_a_second_task_is_served_where_trials_share_passes(host, make_spec, task):
    other, spec = replace(task, name="other", max_length=16), make_spec("11")
    info = host.info(task)
    assert (host.info(task), info.num_slots >= 1) == (info, True)
    if host.info(other).unpackable:
        with pytest.raises(UsageError, match="what all rows share"):
            host.advance(spec, 2, None, other)
    else:
        assert host.advance(spec, 2, None, other)[0].step == 2
    assert host.advance(spec, 2, None, replace(task, pooling="auto"))[0].step == 2
    assert host.advance(spec, 2, None, task)[0].step == 2


# ---- answers that are written: the untouched base, and what answers carry --------------------------------------------
WRITING = """
task:
  name: turned-words
  kind: text-generation
  data: {data_files: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  prompt: "say {words}"
  answer: " {turned}"
  metrics: [exact_match]
  max_length: 16
  validation_rows: 3
  generation: {max_new_tokens: 3}
base_model: ./base
parameters: {rank: 4, learning_rate: 0.01, batch_size: 4}
search: {max_steps: 8, report_every: 2, precision: float32}
"""
ROWS = range(12)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writing")
    save_base(folder / "base")
    save_rows(folder)
    return parse_space(WRITING, source="writing.yaml", folder=folder)


@pytest.fixture(scope="module", params=[1, 2])
def writer(request, words, warm_home):
    yield from made(words, warm_home, request.param)


@pytest.fixture
def written(writer, words):
    """A trial of it."""
    modules = tuple(module.name for module in writer.info(words.task).modules)
    hyper = Hyperparameters(modules, 3e-2, 3e-2, rank=4, init_std=1e-1, batch_size=4, max_steps=8)
    return TrialSpec("00000", {}, hyper)


def rounded(answers: Answers) -> Answers:
    """The answers without what may differ: the time, and the last bits of losses that share a batch with others."""
    losses = tuple(round(loss, 3) for loss in answers.losses or ())
    return replace(answers, seconds=0.0, loss=round(answers.loss, 2), losses=losses)


@pytest.mark.parametrize("shots", [0, 4])
def test_the_base_alone_is_asked_between_rounds_and_no_adapter_is_on_it(writer, words, written, shots):
    task = words.task
    before = writer.answer_without_adapter("validation", ROWS, shots, task)  # all rows, whatever reports score
    assert len(before.predictions) == len(before.labels) == len(ROWS)
    assert before.seconds > 0
    _, state = writer.advance(written, 4, None, task)
    assert rounded(writer.answer_without_adapter("validation", ROWS, shots, task)) == rounded(before)
    trained, alone = writer.answer(written, state, ROWS, task), writer.answer_without_adapter("test", ROWS, shots, task)
    assert trained.labels == alone.labels
    assert trained.loss != pytest.approx(alone.loss, rel=1e-3)
    assert writer.advance(written, 6, state, task)[0].step == 6


def test_answers_carry_what_metrics_are_taken_of_and_candidates_are_scored_by_them(writer, words, written):
    task = words.task
    report, state = writer.advance(written, 2, None, task)
    assert set(report.metrics) == {"loss"}, "reports write nothing"
    whole = writer.answer(written, state, ROWS, task)
    assert len(whole.predictions) == len(whole.ended or ()) == len(whole.losses or ()) == len(ROWS)
    assert sum(whole.losses or ()) == pytest.approx(whole.loss)
    assert sum(whole.counts or ()) == whole.loss_count
    assert all(0 <= right <= count for right, count in zip(whole.correct or (), whole.counts or (), strict=True))
    parts = [writer.answer(written, state, rows, task) for rows in (ROWS[:5], ROWS[5:])]
    assert [value for part in parts for value in part.predictions] == list(whole.predictions)
    losses = [value for part in parts for value in part.losses or ()]
    assert losses == pytest.approx(list(whole.losses or ()), rel=1e-4)
    report, _ = writer.advance(written, 2, state, task.for_candidates)
    assert set(report.metrics) == {"exact_match", "unparsed", "unended", "loss"}
    assert writer.confirm(written, state, task).ends == ("[END]",), "what ends their answers"


def test_a_task_that_is_measured_by_its_tokens_alone_writes_nothing(writer, words):
    task = replace(words.task, metric="loss", direction="minimize", metrics=("loss", "token_accuracy"))
    task = replace(task, report_metric=None, report_direction=None)
    answers = writer.answer_without_adapter("test", ROWS, 0, task)
    assert (set(answers.predictions), answers.ended) == ({""}, None)
    metrics, rows = joined([answers], task)
    assert set(metrics) == {"loss", "token_accuracy"}
    assert rows.losses is not None
