"""What every task kind keeps to, whatever it learns; see `tasks/kinds/_base.py`. One of them is from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.bases import LLAMA, language_model, word_tokenizer
from support.trials import TrialBase, make_spec, train
from support.word_pairs import WordPairs

from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.load import load_model
from loraxs_search.cli.live_text import data_lines
from loraxs_search.engine.passes import ask, forward
from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.records.adapter import Answers
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.task import BaseModel, DataSource, Task
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.tasks.encoded import RowSource
from loraxs_search.tasks.kinds import KINDS, PassOutputs, RequestGenerator, Section, TaskKind, find_metric, kind_of
from loraxs_search.tasks.prepared import PreparedTask, load_data, prepare
from loraxs_search.trial.attach import attach
from loraxs_search.trial.evaluate import score_rows, split_metrics
from loraxs_search.trial.snapshot import Snapshot

SIZES = {"train": 40, "validation": 13, "test": 11}
COLUMNS = {"columns": {"text": "text", "label": "label"}}
# A kind's own keys, and how one of its rows is made of a number.
EXAMPLES: dict[str, dict[str, Any]] = {
    "sequence-classification": COLUMNS | {"labels": ["no", "yes", "maybe"]},
    "taught": COLUMNS | {"labels": ["no", "yes"], "teacher": {"columns": ["soft.no", "soft.yes"]}},
    "ordinal": COLUMNS | {"labels": ["1", "2", "5"]},
    "multi-label": COLUMNS | {"labels": ["no", "yes", "maybe"]},
    "regression": COLUMNS,
    "token-classification": {
        "columns": {"tokens": "text", "tags": "label"},
        "labels": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    },
    "multiple-choice": {
        "prompt": "{text}",
        "options": [" w1", " w2 w3", " w4"],
        "label": "label",
        "normalize": "tokens",
    },
    "text-generation": {"prompt": "{text}", "answer": " {pair}", "generation": {"max_new_tokens": 6, "stop": [" w3"]}},
    "word-pairs": {"ask": "text", "answer": "pair"},
}
KIND_OF = {"taught": "sequence-classification"}  # of an example with another name than its kind's
NAMES = [*KINDS.names(), WordPairs.name, *KIND_OF]
every_kind = pytest.mark.parametrize("name", NAMES, scope="module")


@pytest.fixture(scope="module", autouse=True)
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS._entries, WordPairs.name, WordPairs)
        yield


def row(number: int, name: str) -> dict[str, Any]:
    words = [f"w{(7 * number + 3 * i) % 30}" for i in range(2 + number % 5)]
    label: Any = number / 7 if name == "regression" else number % 3
    if name == "ordinal":
        label = (1, 2, 5)[number % 3]
    if name == "multi-label":
        label = [[], "yes", [1, "no"], "maybe|no"][number % 4]
    if name == "token-classification":
        label = [(number + 2 * i) % 5 for i in range(len(words))]
    made = {"text": " ".join(words), "label": label, "pair": f"{words[-1]} {words[0]}"}
    if name == "taught":  # some train rows have no label, and some no answer of the teacher
        made["label"] = None if number < SIZES["train"] and number % 3 == 0 else number % 2
        made["soft"] = {"no": number % 3 / 4, "yes": 1 - number % 3 / 4} if number % 4 else None
        made["label"] = number % 2 if made["soft"] is None else made["label"]
    return made


@pytest.fixture(scope="module")
def task(name, known, tmp_path_factory):
    kind = KINDS.get(KIND_OF.get(name, name))
    folder, files = tmp_path_factory.mktemp("rows"), {}
    for number, (split, size) in enumerate(SIZES.items()):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row(100 * number + i, name)) + "\n" for i in range(size)))
        files[split] = str(path)
    metrics = [metric for metric in kind.metrics if metric not in kind.unfit_metrics(EXAMPLES[name])]
    section = kind.section.model_validate(EXAMPLES[name])
    return Task(
        name="example",
        kind=kind.name,
        source=DataSource(data_files=files),
        metric=metrics[0],
        metrics=tuple(metrics),
        direction=kind.metrics[metrics[0]].direction,
        max_length=12,
        **kind.fields(section),
    )


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(["[PAD]", "[UNK]", *(f"w{i}" for i in range(LLAMA.vocab_size - 2))])


@pytest.fixture(scope="module")
def kind(task):
    return kind_of(task)


@pytest.fixture(scope="module")
def data(task, tokenizer):
    return prepare(task, tokenizer)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    """A language model of random weights: kinds with a head put theirs on its body."""
    folder = tmp_path_factory.mktemp("base")
    language_model(LLAMA).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return BaseModel("tiny", str(folder), "0" * 64)


@pytest.fixture
def model(base, kind):
    return load_model(base, kind.model)


def answer_metrics(kind: TaskKind) -> list[str]:
    return [name for name in kind.task.metrics if kind.metrics[name].column == "predictions"]


# ---- declaration -----------------------------------------------------------------------------------------------------
@every_kind
def test_its_keys_make_a_task_whose_metrics_mean_the_same_everywhere_and_its_example_is_a_question(name, task, kind):
    assert issubclass(kind.section, Section)
    keys = kind.section.model_validate(EXAMPLES[name]).model_dump()
    assert not list(kind.laws(keys))
    assert set(kind.unfit_metrics(keys)) <= set(kind.metrics)
    assert not kind.unfit_metrics({})
    assert kind_of(from_json(Task, to_json(task))).task == task
    assert all(find_metric(metric, kind.task) is own and own.name == metric for metric, own in kind.metrics.items())
    assert all((known := find_metric(name)) and known.direction == own.direction for name, own in kind.metrics.items())
    assert len(kind.example) == len(kind.question_columns)
    assert len(kind.questions([kind.example])) == 1
    for rows in ([], [()], [("a", "b", "c", "d")], [("",)]):
        with pytest.raises(TaskDataError, match="must be given"):
            kind.questions(rows)


def test_no_module_of_a_kind_loads_torch_or_transformers():
    modules = ", ".join(KINDS.get(KIND_OF.get(name, name)).__module__ for name in NAMES)
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'transformers', 'datasets'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0


# ---- rows to tokens --------------------------------------------------------------------------------------------------
@every_kind
def test_rows_fit_the_base_each_read_has_a_target_and_cached_tokens_are_those_of_every_row_alone(
    name, task, kind, data
):
    for split, size in SIZES.items():
        encoded, every = data.encoded(split), np.arange(size)  # type: ignore[arg-type]
        assert len(encoded) == size == len(data.labels(split))  # type: ignore[arg-type]
        assert encoded.lengths.min() >= 1
        assert encoded.lengths.max() <= task.max_length
        assert encoded.targets is not None
        assert not (encoded.targets.lengths % encoded.counts(every)).any()
        assert encoded.positions is not None or kind.model.num_outputs is not None
        for i in every if encoded.positions is not None else ():
            positions = encoded.positions.row(i)
            assert len(positions)
            assert 0 <= positions[0] <= positions[-1] < encoded.lengths[i]
    again, rows = prepare(task, data.tokenizer), load_data(task)["train"]
    for i in range(len(rows)):
        alone = kind.encode(rows.take([i]), data.tokenizer)
        for prepared in (data, again):
            known = prepared.encoded("train")
            np.testing.assert_array_equal(known.ids.row(i), alone.ids.row(0))
            if known.positions is not None and alone.positions is not None:
                np.testing.assert_array_equal(known.positions.row(i), alone.positions.row(0))


@every_kind
def test_it_says_of_its_answers_what_fits_a_few_columns_and_constants_are_answers(name, kind, data):
    report = data.report
    assert set(report.tokens) == set(SIZES)
    assert report.answers
    assert all(set(fact.values) <= set(SIZES) for fact in report.answers)
    assert report.constant is not None
    assert set(report.standard_errors["test"]) == set(answer_metrics(data.kind)) == set(report.constant.scores["test"])
    for short in (False, True):
        lines = data_lines(report, SIZES, data.task.metric, short=short)  # type: ignore[arg-type]  # names of splits
        assert max(map(len, lines)) <= 60
        assert len(lines) <= (10 if short else 40)
    assert from_json(type(report), to_json(report)) == report
    labels = data.labels("train")
    constants = kind.constants(labels)
    for answer in constants:
        assert list(kind.measure(np.full(len(labels), answer), labels)) == answer_metrics(kind)
        assert kind.show(answer)
    if kind.is_linear:
        targets = data.kind.targets(labels)
        assert targets.shape == (len(labels), kind.model.num_outputs)
        assert data.kind.answers(torch.from_numpy(targets)).tolist() == pytest.approx(labels.tolist(), abs=1e-5)


# ---- training --------------------------------------------------------------------------------------------------------
def losses(kind: TaskKind, model: Any, data: PreparedTask, rows: list[int]) -> torch.Tensor:
    batch = data.collate("train", rows)
    return kind.loss(forward(model, batch.inputs, batch.reads), batch)


@every_kind
def test_a_rows_loss_is_its_own_and_trains_an_adapter(name, kind, model, data, base):
    rows = [3, 0, 21, 7, 8]
    together = losses(kind, model, data, rows)
    assert (together.shape, together.dtype) == ((len(rows),), torch.float32)
    torch.testing.assert_close(together, torch.cat([losses(kind, model, data, [row]) for row in rows]))
    torch.testing.assert_close(together[[4, 2]], losses(kind, model, data, [8, 21]))
    attached = attach(model, make_spec("1", [module.name for module in linear_modules(base, kind.model)]))
    losses(kind, attached, data, [0, 1, 2]).sum().backward()
    trained = {n: p for n, p in attached.named_parameters() if p.requires_grad}
    assert any("loraxs_R" in n for n in trained)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in trained.values())


# ---- scoring ---------------------------------------------------------------------------------------------------------
@every_kind
def test_scores_come_in_the_order_asked_for_are_measured_and_stored(name, kind, model, data):
    scores, labels = score_rows(model, data, "test", np.arange(SIZES["test"])), data.labels("test")
    some = score_rows(model, data, "test", np.array([9, 2, 4]))
    assert scores.predictions[[9, 2, 4]].tolist() == pytest.approx(some.predictions.tolist(), abs=1e-5)
    np.testing.assert_allclose(scores.losses[[9, 2, 4]], some.losses, rtol=1e-5)
    assert scores.counts[[9, 2, 4]].tolist() == some.counts.tolist()
    assert scores.predictions.dtype.kind == labels.dtype.kind

    measured = split_metrics(data, "test", scores)
    beside = {"unparsed", "unended"} if scores.ended is not None else set()
    beside |= {"calibration_error"} if kind.gives_confidences else set()
    assert set(measured) == {*kind.task.metrics, "loss"} | beside
    assert measured["loss"] == pytest.approx(scores.losses.sum() / scores.counts.sum())
    assert scores.correct is None or (scores.correct <= scores.counts).all()

    answers = Answers(tuple(scores.predictions.tolist()), tuple(labels.tolist()), 1.5, 3)
    read = from_json(Answers, to_json(answers))
    assert read == answers
    rows = ScoredRows.from_bytes(ScoredRows.of(read.predictions, read.labels).to_bytes())
    assert rows.same_rows(ScoredRows(labels, labels))
    expected = {name: measured[name] for name in answer_metrics(kind)}
    assert kind.measure(rows.predictions, rows.labels) == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in KINDS.names() if "loss" in KINDS.get(name).metrics], scope="module")
def test_a_cheap_report_has_the_losses_of_a_whole_one(name, task, model, data):
    """Where trials are compared by the loss, answers that cost more are left out, and nothing else changes."""
    whole = score_rows(model, data, "test", np.arange(SIZES["test"]))
    cheap_task = replace(task, report_metric="loss", report_direction="minimize")
    cheap_data = prepare(cheap_task, data.tokenizer)
    cheap = score_rows(model, cheap_data, "test", np.arange(SIZES["test"]))
    np.testing.assert_allclose(cheap.losses, whole.losses, rtol=1e-5)
    assert cheap.counts.tolist() == whole.counts.tolist()
    assert cheap.predictions is None
    assert split_metrics(cheap_data, "test", cheap)["loss"] == pytest.approx(whole.losses.sum() / whole.counts.sum())


@every_kind
def test_a_batch_of_outputs_is_reduced_row_by_row_and_asking_may_be_ended_early(name, kind, model, data):
    """What `reduce` makes of a part of the rows is that part of what it makes of all."""
    asking: RequestGenerator[Any] = kind.score(data, "test", np.arange(6))
    request = next(asking)
    asking.close()
    with pytest.raises(StopIteration):
        next(asking)

    @torch.inference_mode()
    def reduced(rows: list[int]) -> tuple[torch.Tensor, ...]:
        batch = data.collate(request.source, request.rows[rows])
        outputs = forward(model, batch.inputs, batch.reads)
        assert isinstance(outputs, PassOutputs)
        return request.reduce(outputs, batch)

    for whole, *parts in zip(reduced([0, 1, 2, 3]), reduced([0, 1]), reduced([2, 3]), strict=True):
        assert len(whole) == 4
        torch.testing.assert_close(whole, torch.cat(parts))


@every_kind
def test_a_question_is_answered_as_its_row_is_and_numbers_that_are_not_finite_are_no_answer(name, kind, model, data):
    questions = [(row(200 + i, name)["text"],) for i in range(SIZES["test"])]
    source = RowSource(data.tokenizer)
    shown = [question[0] for question in questions]
    predictions = ask(model, source, data.kind.predict(source, kind.encode_questions(questions, data.tokenizer), shown))
    assert [prediction.text for prediction in predictions] == shown
    scores = score_rows(model, data, "test", np.arange(SIZES["test"]))
    for prediction, answer in zip(predictions, scores.predictions.tolist(), strict=True):
        said = prediction.label if prediction.label is not None else f"{prediction.score:.4g}"
        assert (said or kind.show("")) == kind.show(answer)
        if prediction.probabilities is not None:
            assert list(prediction.probabilities) == list(kind.task.labels)
            assert not kind.is_exclusive or sum(prediction.probabilities.values()) == pytest.approx(1)
        assert (prediction.expected is not None) == bool(kind.levels)
    assert (scores.confidences is not None) is kind.gives_confidences
    if scores.confidences is not None:
        assert scores.confidences.dtype == np.float32
        assert scores.confidences.tolist() == pytest.approx([it.score for it in predictions], abs=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(TrialDivergedError, match="finite"):
        ask(model, source, data.kind.predict(source, kind.encode_questions(questions[:1], data.tokenizer), shown[:1]))


# ---- alone and packed ------------------------------------------------------------------------------------------------
@every_kind
def test_packed_trials_are_lone_trials(name, kind, model, base, data):
    world = TrialBase()
    world.base = base
    world.load(kind.model)
    upper = tuple(n for n in world.names if ".1." in n)  # the lower layer is skipped where all adapt the upper alone
    specs = [
        world.spec("1"),
        world.spec("2", rank=2, scale=2.0, target_modules=upper, batch_size=5),
        world.spec("3", rank=6, basis="bottom", learning_rate=5e-3),
    ]
    pack = world.pack(max_tokens=100, num_workers=3)
    for group in (specs, specs[1:2]):
        slots = [pack.join(own, data) for own in group]
        train(pack, slots, 10)
        world.check_as_alone(pack, slots)


@every_kind
def test_a_trial_taken_up_from_its_snapshot_is_one_that_went_on(name, kind, model, base, data):
    world = TrialBase()
    world.base = base
    world.load(kind.model)
    pack = world.pack(max_tokens=100)
    whole = pack.join(world.spec("1", batch_size=5), data)
    train(pack, [whole], 4)
    kept = Snapshot.from_bytes(whole.snapshot().to_bytes())
    train(pack, [whole], 6)
    again = pack.join(whole.spec, data, kept)
    train(pack, [again], 6)
    assert again.step == whole.step == 10
    for own, other in zip(again.parameters, whole.parameters, strict=True):
        assert torch.equal(own, other)
