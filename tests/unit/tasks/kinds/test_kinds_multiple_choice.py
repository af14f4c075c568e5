"""Multiple choice: questions, tokens, likelihoods and answers."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from support.characters import CHAT, characters
from support.text_tasks import choosing_task, labelled

from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.records.task import Task
from loraxs_search.tasks.encoded import Ragged, RowSource
from loraxs_search.tasks.kinds import checked
from loraxs_search.tasks.kinds.multiple_choice import Choices
from loraxs_search.tasks.prepared import encode, load_data, prepare


@pytest.fixture
def make(write):
    """A task on a few rows, in all three splits."""
    return partial(choosing_task, write)


# ---- questions -------------------------------------------------------------------------------------------------------
def test_a_question_gives_the_prompts_columns_and_then_the_options(make):
    kind = checked(make(prompt="{q} {extra}?"))
    assert kind.question_texts == ("q", "extra", "choices, separated by |")
    assert kind.question_columns == ("q", "extra", "choices")
    rows = kind.questions([("one", "two", "a |b| c"), ("three", "four", ["x | y", "z"])])
    assert rows.texts == ["one two?", "three four?"]
    assert kind.shown(("Which?", ["a", 2])) == "Which? | a | 2"
    assert rows.extras["options"] == [[" a", " b", " c"], [" x | y", " z"]]
    assert checked(make(labelled([0]), options=["x", "y"])).question_texts == ("q",)
    assert checked(make(options=[" {a}", " {b}"])).question_texts == ("q", "a", "b")


def test_options_that_the_prompt_shows_are_asked_for_once(make):
    kind = checked(make(prompt="{q} {choices}?"))
    assert kind.question_texts == ("q", "choices, separated by |")
    assert kind.questions([("one", "a|b")]).texts == ['one ["a", "b"]?']
    assert load_data(kind.task).rows["train"].texts[0] == 'Sky ["blue", "red"]?'


def test_a_question_with_one_option_is_refused(make):
    with pytest.raises(TaskDataError, match=r"two or more, .*row 2"):
        checked(make()).questions([("one", "a|b"), ("two", "a")])


def test_an_option_without_a_token_is_refused(make):
    task = make(labelled([0, 1, 0]), options=["x", "\N{SNOWMAN}"])
    assert len(prepare(task, characters()).encoded("train")) == 3
    with pytest.raises(TaskDataError, match="each option must have a token"):
        prepare(task, characters(drops=True))


# ---- tokens ----------------------------------------------------------------------------------------------------------
def shown(tokenizer, ids) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(np.asarray(ids).tolist()))


def test_the_right_options_tokens_are_learnt_and_nothing_else(make):
    tokenizer = characters(begins=True)
    data = prepare(make(normalize="bytes"), tokenizer)
    rows = data.encoded("train")
    assert [shown(tokenizer, rows.ids.row(i)) for i in (0, 1)] == ["<s>Sky?▁blu", "<s>Sum?▁3"]
    assert [shown(tokenizer, rows.targets.row(i)) for i in (0, 1)] == ["▁blue", "▁33"]
    assert rows.positions.row(0).tolist() == [4, 5, 6, 7, 8]
    assert rows.cut.tolist() == [False, False]
    assert data.report.cut == {"train": 0, "validation": 0, "test": 0}


def test_a_prompt_is_cut_from_its_left_so_that_every_option_fits(make):
    tokenizer = characters(begins=True)
    rows = [{"q": "abcdefgh", "choices": ["a", "bbbb"], "answer": 0}, {"q": "xy", "choices": ["a", "b"], "answer": 1}]
    task = Task(**{**make(rows).__dict__, "max_length": 9})
    for _ in ("computed", "from the cache"):
        data = prepare(task, tokenizer)
        encoded = data.encoded("train")
        assert [shown(tokenizer, encoded.ids.row(i)) for i in (0, 1)] == ["<s>gh?▁", "<s>xy?▁"]
        assert data.report.cut == {"train": 1, "validation": 1, "test": 1}


def test_an_option_that_does_not_fit_is_refused_with_its_row(make):
    rows = [*labelled([0] * 1500), {"q": "long", "choices": ["a", "b" * 30], "answer": 0}]
    task = Task(**{**make(rows).__dict__, "max_length": 20})
    with pytest.raises(TaskDataError) as error:
        prepare(task, characters(begins=True))
    path = task.source.data_files["train"]
    assert f"but in {path} those of 'long?' (line 1501) do not: the longest has 31 tokens, and max_length=20." in str(
        error.value
    )
    assert "raise `max_length` above 31" in error.value.hint


def test_messages_need_a_chat_template(make):
    task = make(prompt=None, messages=[{"role": "user", "content": "{q}"}])
    with pytest.raises(TaskDataError, match=r"`messages`.* chat template"):
        prepare(task, characters())
    data = prepare(task, characters(chat=CHAT))
    assert shown(data.tokenizer, data.encoded("train").ids.row(0)) == "<|user|>Sky<|end|><|assistant|>blu"


# ---- scores ----------------------------------------------------------------------------------------------------------
def answered(asking, tokenizer, **losses):
    """Answer a request for options with the losses of these tokens, 0 of all others, each of which is the likeliest."""
    request = next(asking)
    targets = request.source.targets
    values = torch.zeros(len(request.rows), int(targets.lengths.max()))
    for row in range(len(request.rows)):
        for column, token in enumerate(tokenizer.convert_ids_to_tokens(targets.row(row).tolist())):
            values[row, column] = losses.get(token, 0.0)
    with pytest.raises(StopIteration) as stop:
        asking.send((values, (values == 0).long()))
    return request, stop.value.value


@pytest.mark.parametrize(("normalize", "second"), [("none", 0), ("tokens", 2), ("bytes", 2)])
def test_the_likeliest_option_wins_after_normalising(make, normalize, second):
    data = prepare(make(normalize=normalize), characters())
    asking = data.kind.score(data, "test", np.array([1, 0]))
    of_tokens = {"1": 1.0, "2": 1.5, "3": 0.625, "b": 3.0, "r": 2.0}
    _, scores = answered(asking, data.tokenizer, **of_tokens)
    assert scores.predictions.tolist() == [second, 1]
    assert scores.losses.tolist() == [1.25, 3.0], "those of the right options"
    assert scores.losses.dtype == np.float32
    assert scores.counts.tolist() == [3, 5]
    assert scores.correct.tolist() == [1, 4]


def test_options_that_begin_alike_are_one_row_and_all_share_the_prompt(make):
    data = prepare(make(), characters())
    request, _ = answered(data.kind.score(data, "test", np.array([1, 0])), data.tokenizer)
    rows = request.source.with_prompts()
    assert [shown(data.tokenizer, rows.ids.row(i)) for i in range(len(rows))] == ["Sum?▁3", "Sky?▁blu", "Sky?▁re"]
    assert [shown(data.tokenizer, rows.targets.row(i)) for i in range(len(rows))] == ["▁1233", "▁blue", "▁red"]
    assert rows.positions.row(0).tolist() == [3, 4, 4, 4, 5]
    choices = Choices.unpacked(data.encoded("test").extras)
    parts, _ = choices.behind(Ragged.of([[7, 8, 9]] * 2, np.int32))
    assert (parts.prompt_of.tolist(), parts.prompts.row(1).tolist()) == ([0, 0, 1], [7, 8])
    assert parts.ids.row(2)[0] == 9
    whole = parts.with_prompts()
    assert (whole.prompts, whole.ids.row(2)[:3].tolist()) == (None, [7, 8, 9])
    assert whole.positions.row(2).tolist() == [2, 3, 3, 3, 4]


@pytest.mark.parametrize("shots", [0, 4])
def test_the_base_alone_is_asked_with_worked_examples(make, shots):
    rows = [{"q": f"q{i}", "choices": ["yes", "no"], "answer": i % 2} for i in range(6)]
    data = prepare(make(rows), characters(begins=True))
    asking = data.kind.base_alone(data, "test", np.array([4]), shots)
    request, scores = answered(asking, data.tokenizer, n=1.0)
    asked = shown(data.tokenizer, request.source.with_prompts().ids.row(0))
    *before, last = asked.removeprefix("<s>").split("\n\n")
    assert last == "q4?▁ye"
    assert sorted(example.partition("?▁")[2] for example in before) == ["no", "no", "yes", "yes"][:shots]
    assert scores.predictions.tolist() == [0] == data.labels("test")[[4]].tolist()


def test_a_likelihood_that_is_not_finite_ends_the_trial(make):
    data = prepare(make(), characters())
    asking = data.kind.score(data, "test", np.arange(2))
    next(asking)
    values = torch.zeros(3, 5)
    values[1, 2] = float("nan")
    with pytest.raises(TrialDivergedError):
        asking.send((values, torch.zeros(3, 5)))


def test_an_answer_is_the_options_text_and_its_share_among_them(make):
    kind, tokenizer = checked(make()), characters()
    source, questions = RowSource(tokenizer), encode(kind, tokenizer, [("Sky", "red|blue"), ("x", "a|d|c")])
    asking = kind.predict(source, questions, ["Sky", "x"])
    of_tokens = {"r": np.log(4), "b": np.log(4 / 3)}
    _, (first, second) = answered(asking, tokenizer, **of_tokens)
    assert (first.text, first.label) == ("Sky", "blue")
    assert first.score == pytest.approx(0.75)
    assert second.score == pytest.approx(1 / 3)
    assert kind.show(1) == "B"
    assert checked(make(labelled([0]), options=[" no", " yes"])).show(1) == "yes"
    unknown = encode(kind, tokenizer, [("z", "Z\u00fcrich  2|b")])
    _, (own,) = answered(kind.predict(source, unknown, ["z"]), tokenizer, b=9)
    assert own.label == "Z\u00fcrich  2", "whatever the tokenizer makes of it"
    assert kind.linear() is None
    assert kind.constants(np.array([2, 0, 2])) == [2, 0]
