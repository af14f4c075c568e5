"""What every host keeps to with tasks whose answers are written: the untouched base, and what answers carry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.toy_language import save_base, save_rows

from loraxs_search.records.adapter import Answers, LargestTrial
from loraxs_search.records.trial import Hyperparameters, TrialSpec
from loraxs_search.search.driver.work_items import joined as joined_answers
from loraxs_search.search.hosts.host_config import HostConfig
from loraxs_search.search_space.load import parse_space

SPACE = """
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
def space(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writing")
    save_base(folder / "base")
    save_rows(folder)
    return parse_space(SPACE, source="writing.yaml", folder=folder)


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "packed"])
def host(request, space, warm_home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(warm_home))
        config = HostConfig(
            space.base_model,
            "float32",
            2 if request.param else 1,
            LargestTrial(4, (("lora-xs", {"rank": 4}),)),
        )
        made = HostConfig.make(config, space.task, torch.get_num_threads())
        yield made
        made.close()


@pytest.fixture
def spec(host, space):
    modules = tuple(module.name for module in host.info(space.task).modules)
    hyper = Hyperparameters(modules, 3e-2, 3e-2, rank=4, init_std=1e-1, batch_size=4, max_steps=8)
    return TrialSpec("00000", {}, hyper)


def numbers(answers: Answers) -> Answers:
    """The answers without what may differ: the time, and the last bits of losses that share a batch with others."""
    rounded = tuple(round(loss, 3) for loss in answers.losses or ())
    return replace(answers, seconds=0.0, loss=round(answers.loss, 2), losses=rounded)


def joined(parts: list[Answers], column: Callable[[Answers], tuple[object, ...] | None]) -> list[object]:
    return [value for part in parts for value in column(part) or ()]


@pytest.mark.parametrize("shots", [0, 4])
def test_the_base_alone_is_asked_between_rounds_and_no_adapter_is_on_it(host, space, spec, shots):
    task = space.task
    before = host.answer_without_adapter("validation", ROWS, shots, task)  # all validation rows, whatever reports score
    assert len(before.predictions) == len(before.labels) == len(ROWS)
    assert before.seconds > 0
    _, state = host.advance(spec, 4, None, task)
    assert numbers(host.answer_without_adapter("validation", ROWS, shots, task)) == numbers(before)
    trained = host.answer(spec, state, ROWS, task)
    alone = host.answer_without_adapter("test", ROWS, shots, task)
    assert trained.labels == alone.labels
    assert trained.loss != pytest.approx(alone.loss, rel=1e-3)
    assert host.advance(spec, 6, state, task)[0].step == 6


def test_answers_carry_what_metrics_are_taken_of(host, space, spec):
    task = space.task
    report, state = host.advance(spec, 2, None, task)
    assert set(report.metrics) == {"loss"}, "reports write nothing"
    whole = host.answer(spec, state, ROWS, task)
    assert len(whole.predictions) == len(whole.ended or ()) == len(whole.losses or ()) == len(ROWS)
    assert sum(whole.losses or ()) == pytest.approx(whole.loss)
    assert sum(whole.counts or ()) == whole.loss_count
    assert all(0 <= right <= count for right, count in zip(whole.correct or (), whole.counts or (), strict=True))
    parts = [host.answer(spec, state, rows, task) for rows in (ROWS[:5], ROWS[5:])]
    assert joined(parts, lambda part: part.predictions) == list(whole.predictions)
    assert joined(parts, lambda part: part.losses) == pytest.approx(list(whole.losses or ()), rel=1e-4)


def test_candidates_are_scored_by_what_they_write_and_know_what_ends_their_answers(host, space, spec):
    _, state = host.advance(spec, 2, None, space.task)
    report, _ = host.advance(spec, 2, state, space.task.for_candidates)
    assert set(report.metrics) == {"exact_match", "unparsed", "unended", "loss"}
    assert host.confirm(spec, state, space.task).ends == ("[END]",)


def test_a_task_that_is_measured_by_its_tokens_alone_writes_nothing(host, space, spec):
    task = replace(space.task, metric="loss", direction="minimize", metrics=("loss", "token_accuracy"))
    task = replace(task, report_metric=None, report_direction=None)
    answers = host.answer_without_adapter("test", ROWS, 0, task)
    assert (set(answers.predictions), answers.ended) == ({""}, None)
    metrics, rows = joined_answers([answers], task)
    assert set(metrics) == {"loss", "token_accuracy"}
    assert rows.losses is not None
