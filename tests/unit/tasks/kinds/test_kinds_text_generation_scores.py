"""Text generation: tokens, requests and answers, and how a base or another adapter is asked."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from support.characters import CHAT, SPACED, THINKING, characters
from support.text_tasks import NUMBER, SUMS, writing_task
from transformers import GenerationConfig

from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.records.task import Task
from loraxs_search.tasks.encoded import RowSource
from loraxs_search.tasks.kinds import ForwardRequest, Generated, GenerateRequest, Ragged, checked
from loraxs_search.tasks.prepared import encode, load_data, prepare, served


@pytest.fixture
def make(write):
    """A task on a few rows, in all three splits."""
    return partial(writing_task, write)


# ---- tokens ----------------------------------------------------------------------------------------------------------
def test_the_answer_and_its_end_are_learnt(make):
    data = prepare(make(), characters())
    rows, tokenizer = data.encoded("train"), data.tokenizer
    ids, positions, targets = rows.ids.row(0), rows.positions.row(0), rows.targets.row(0)
    assert tokenizer.decode(ids) == "Two and two? The answer is 4"
    assert tokenizer.decode(targets) == " The answer is 4</s>"
    assert ids[positions[0]] == tokenizer.convert_tokens_to_ids("?")
    assert ids[positions[1:]].tolist() == targets[:-1].tolist()


def test_a_chat_ends_as_the_template_ends_a_turn(make):
    task = make(prompt=None, messages=[{"role": "user", "content": "{q}"}], answer="{a}")
    data = prepare(task, characters(chat=CHAT))
    rows = data.encoded("train")
    assert data.tokenizer.decode(rows.ids.row(0)) == "<|user|>Two and two<|end|><|assistant|>The answer is 4"
    assert data.tokenizer.decode(rows.targets.row(0)) == "The answer is 4<|end|>"


# ---- requests --------------------------------------------------------------------------------------------------------
def texts_written(*texts, ended=True, margins=1.0):
    n = len(texts)
    tokens = Ragged.of([[1]] * n, np.int32)
    return Generated(list(texts), tokens, np.full(n, ended), np.full(n, margins, np.float32))


def answered(asking, data, texts, **changes):
    """Answer the loss with 1 a row, and what is written with texts; return the scores and the `GenerateRequest`."""
    request, write = next(asking), None
    try:
        while True:
            if isinstance(request, ForwardRequest):
                n = len(request.rows)
                request = asking.send((torch.ones(n), torch.zeros(n, dtype=torch.int64)))
            else:
                write = request
                request = asking.send(texts_written(*texts, **changes))
    except StopIteration as stop:
        return stop.value, write


def test_what_is_written_is_scored_by_its_answer(make):
    data = prepare(make(**NUMBER), characters())
    texts = ["Well, The answer is $4.00.", "The answer is 13", "no"]
    scores, write = answered(data.kind.score(data, "test", np.array([0, 1, 2])), data, texts, ended=False)
    assert isinstance(write, GenerateRequest)
    assert [data.tokenizer.decode(write.source.ids.row(i)) for i in range(2)] == ["Two and two?", "Six and six?"]
    assert (write.max_new_tokens, write.stop, write.sampling) == (20, (), None)
    assert scores.predictions.tolist() == ["4", "13", ""]
    measured = data.kind.measure_scores(scores, data.labels("test"))
    assert measured == pytest.approx(
        {"exact_match": 1 / 3, "unparsed": 1 / 3, "unended": 1.0, "loss": 3 / scores.counts.sum()}
    )


def test_rows_without_answers_are_written_for_and_have_no_loss(make):
    rows = [{"q": row["q"], "n": row["n"]} for row in SUMS]
    data = prepare(make(test=rows, **NUMBER), characters())
    every = np.arange(3)
    for asking in (
        data.kind.score(data, "test", every),
        *(data.kind.base_alone(data, "test", every, n) for n in (0, 4)),
    ):
        assert isinstance(next(asking), GenerateRequest)  # no pass for losses
        asking.close()
    scores, write = answered(data.kind.score(data, "test", every), data, ["The answer is 4", "The answer is 12", "no"])
    assert [data.tokenizer.decode(write.source.ids.row(i)) for i in range(2)] == ["Two and two?", "Six and six?"]
    assert data.kind.measure_scores(scores, data.labels("test")) == pytest.approx(
        {"exact_match": 2 / 3, "unparsed": 1 / 3, "unended": 0.0}
    )
    assert (scores.losses.tolist(), scores.counts.tolist()) == ([0.0] * 3, [0] * 3)


def test_a_report_of_the_loss_writes_nothing(make):
    data = prepare(make(report_metric="loss"), characters())
    scores, write = answered(data.kind.score(data, "test", np.array([0])), data, [])
    assert (write, scores.predictions) == (None, None)
    assert set(data.kind.measure_scores(scores, data.labels("test"))) == {"loss"}


def test_candidates_are_written_for_where_any_metric_needs_it(make):
    assert checked(make(metrics=("loss", "exact_match"))).reports_answers
    assert not checked(make(metrics=("loss", "token_accuracy"))).reports_answers


def test_formulas_are_equal_in_any_form(make):
    rows = [{"q": "x", "a": "The answer is \\frac{1}{2}", "n": "1"}]
    data = prepare(make(rows, extract={"after": "The answer is", "as": "math"}), characters())
    scores, _ = answered(data.kind.score(data, "test", np.array([0])), data, ["The answer is 0.5."])
    assert scores.predictions.tolist() == data.labels("test").tolist() == ["\\frac{1}{2}"]


def test_sampling_is_asked_for(make):
    generation = {"max_new_tokens": 5, "stop": ["z"], "temperature": 0.5, "top_p": 0.9, "seed": 3}
    data = prepare(make(generation=generation), characters())
    _, write = answered(data.kind.score(data, "test", np.array([0])), data, ["x"])
    assert (write.sampling.seed, write.sampling.temperature, write.sampling.top_p) == (3, 0.5, 0.9)
    assert write.stop == ("z",)


def test_numbers_that_are_not_finite_end_the_trial(make):
    data = prepare(make(), characters())
    with pytest.raises(TrialDivergedError):
        answered(data.kind.score(data, "test", np.array([0])), data, ["x"], margins=np.nan)


def test_a_question_is_answered_with_the_text(make):
    kind, source = checked(make(**NUMBER)), RowSource(characters())
    questions = encode(kind, source.tokenizer, [("Two and two",)])
    predictions, write = answered(kind.predict(source, questions, ["Two and two"]), None, [" The answer is 4"])
    assert source.tokenizer.decode(write.source.ids.row(0)) == "Two and two?"
    assert (predictions[0].text, predictions[0].label) == ("Two and two", "The answer is 4")


# ---- baselines ------------------------------------------------------------------------------------------------------
def shown(data, shots):
    """What the untouched base is asked: the prompts that it continues, and the rows whose loss is taken."""
    asking = data.kind.base_alone(data, "test", np.array([2]), shots)
    read = next(asking)
    write = asking.send((torch.ones(1), torch.zeros(1, dtype=torch.int64)))
    decode = data.tokenizer.decode
    targets = read.source.targets.row(0)
    asked, whole = decode(write.source.ids.row(0)), decode(read.source.ids.row(0))
    assert read.source.ids.row(0)[read.source.positions.row(0)[1:]].tolist() == targets[:-1].tolist()
    assert whole == asked + decode(targets[:-1])
    return asked


def test_worked_examples_stand_before_the_prompt(make):
    data = prepare(make(), characters(begins=True))
    assert shown(data, 0) == "<s>One and six?"
    first, second, asked = shown(data, 2).removeprefix("<s>").split("\n\n")
    pairs = {f"{row['q']}? {row['a']}" for row in SUMS}
    assert first != second
    assert {first, second} < pairs
    assert asked == "One and six?"


def test_worked_examples_are_balanced_by_answer_and_always_the_same(make):
    """In a file that is sorted by its answers, with one that is rare."""
    rows = [{"q": f"q{i}", "a": "no" if i < 80 else "yes" if i < 98 else "maybe", "n": "1"} for i in range(100)]
    data = prepare(make(rows), characters())
    asked = shown(data, 4)
    answers = [part.partition("? ")[2] for part in asked.split("\n\n")[:-1]]
    assert sorted(answers[:3]) == ["maybe", "no", "yes"]
    assert shown(data, 4) == asked
    assert asked.split("\n\n")[0] != "q0? no"


def test_worked_examples_are_turns_of_a_chat(make):
    messages = [{"role": "system", "content": "Say it"}, {"role": "user", "content": "{q}"}]
    data = prepare(make(prompt=None, messages=messages, answer="{a}"), characters(chat=CHAT))
    turns = [f"<|user|>{row['q']}<|end|><|assistant|>{row['a']}<|end|>" for row in SUMS]
    last = "<|user|>One and six<|end|><|assistant|>"
    assert shown(data, 1) in [f"<|system|>Say it<|end|>{turn}{last}" for turn in turns]


@pytest.mark.parametrize(
    ("template", "turns"),
    [
        (SPACED, "<s><|user|>{q}<|assistant|>{a}</s><|user|>One and six<|assistant|>"),
        (THINKING, "<|user|>{q}<|end|><|assistant|>::{a}<|end|><|user|>One and six<|end|><|assistant|>::"),
    ],
    ids=["spaced", "thinking"],
)
def test_templates_that_write_something_before_an_answer_make_turns_too(make, template, turns):
    task = make(prompt=None, messages=[{"role": "user", "content": "{q}"}], answer="{a}")
    assert shown(prepare(task, characters(chat=template)), 1) in [turns.format(**row) for row in SUMS]


def test_a_system_message_of_the_row_is_kept(make):
    messages = [{"role": "system", "content": "{n}"}, {"role": "user", "content": "{q}"}]
    data = prepare(make(prompt=None, messages=messages, answer="{a}"), characters(chat=CHAT))
    assert shown(data, 1).count("<|system|>") == 2


def test_examples_that_do_not_fit_lose_their_beginning(make):
    rows = [{"q": f"{i} " * 20, "a": "x", "n": "1"} for i in range(9)]
    data = prepare(make(rows, max_length=60), characters(begins=True))
    data.tokenizer.model_max_length = 90
    asked = shown(data, 4)
    assert asked.startswith("<s>")
    assert len(data.tokenizer(asked, add_special_tokens=False)["input_ids"]) == 70
    assert asked.endswith("2 2 2 ?")


def test_constants_are_the_most_frequent_references(make):
    kind = checked(make())
    assert kind.constants(np.array(["a", "b", "b", "c"], object))[0] == "b"
    assert len(kind.constants(np.array([str(i) for i in range(100)], object))) == 8


def test_an_adapter_is_served_as_it_was_trained(make):
    serving = checked(make(generation={"max_new_tokens": 9, "stop": ["z"], "temperature": 0.5})).serving
    assert (serving.prompt, serving.messages, serving.stop) == ("{q}?", (), ("z",))
    assert (serving.max_new_tokens, serving.temperature, serving.top_p) == (9, 0.5, 1.0)
    chat = checked(make(prompt=None, messages=[{"role": "user", "content": "{q}"}])).serving
    assert (chat.prompt, chat.messages) == (None, (("user", "{q}"),))


def test_what_ends_an_answer_is_of_base_tokenizer_and_chat(make):
    chat = checked(make(prompt=None, messages=[{"role": "user", "content": "{q}"}]))
    tokenizer, settings = characters(chat=CHAT), GenerationConfig(eos_token_id=[2, 3])
    assert served(checked(make()), tokenizer, None).ends == ("</s>",)
    assert served(chat, tokenizer, settings).ends == ("<s>", "</s>", "<|end|>")
    assert served(chat, tokenizer, None).messages == (("user", "{q}"),)


# ---- a champion that was trained to be asked in another way ----------------------------------------------------------
def asked(task: Task, trained: Task) -> Task:
    return checked(task).asked_as(trained)


def test_an_adapter_that_is_asked_alike_is_asked_as_the_task_says(make):
    task = make(**NUMBER)
    assert asked(task, task) == task
    assert asked(task, replace(task, name="older", metrics=("contains",))) == task


def test_an_adapter_is_asked_in_its_own_way_and_held_against_the_tasks_references(make):
    task = make(**NUMBER)
    trained = make(
        messages=[{"role": "user", "content": "{q}"}],
        prompt=None,
        answer=" #### {n}",
        extract={"after": "####"},
        generation={"max_new_tokens": 5},
        max_length=48,
    )
    own = asked(task, trained)
    assert own.settings == {
        **{key: trained.settings[key] for key in ("messages", "answer", "generation")},
        "reference": "{n}",
        "extract": {"after": "####", "as": "number"},  # looked for where it is written, compared as the task says
    }
    assert (own.name, own.source, own.metrics, own.max_length) == (task.name, task.source, task.metrics, 48)
    kind = checked(own)
    assert (
        load_data(own).rows["test"].labels.tolist() == load_data(task).rows["test"].labels.tolist() == ["4", "12", "7"]
    )
    assert kind.extraction.find(" so #### 12. ") == "12"


def test_references_that_are_the_whole_answer_stay_the_tasks_own(make):
    task = make(extract={"after": "The answer is"})
    own = asked(task, make(answer=" {n}", extract=None))
    assert own.settings["reference"] == task.settings["answer"]
    assert "after" not in own.settings["extract"]
    other = load_data(own).rows["test"].labels.tolist()
    assert other != load_data(task).rows["test"].labels.tolist(), "then the two cannot be compared, and that is said"


@pytest.mark.parametrize("stop", ["END", "}"])
def test_references_that_are_the_whole_answer_lack_the_stop_string(make, stop):
    answer = " {a}" + stop.replace("}", "}}")
    task = make(answer=answer, generation={"max_new_tokens": 20, "stop": [stop]})
    own = load_data(asked(task, make(prompt="Q: {q}"))).rows["test"]
    assert own.labels.tolist() == load_data(task).rows["test"].labels.tolist() == [row["a"] for row in SUMS]
    bare = make(generation={"max_new_tokens": 20, "stop": ["}"]})
    assert asked(bare, make(prompt="Q: {q}")).settings["reference"] == " {a}"


def test_an_adapter_that_writes_nothing_but_its_answer_is_searched_for_no_other_place(make):
    bare = make(**NUMBER)
    bare = replace(bare, settings={k: v for k, v in bare.settings.items() if k != "extract"})
    task = replace(bare, settings={**bare.settings, "extract": {"after": "The answer is"}})
    assert "extract" not in asked(task, bare).settings


def test_an_adapter_of_another_kind_is_refused(make):
    task = make(**NUMBER)
    with pytest.raises(TaskDataError, match=r"\(multiple-choice\), but has \[\] \(text-generation\)"):
        asked(task, replace(task, kind="multiple-choice"))
