"""Text generation: rows and references, what is refused and warned of."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from support.characters import CHAT, SPACED, THINKING, characters
from support.text_tasks import NUMBER, SUMS, broken_laws, refused, writing_task
from transformers import GenerationConfig

from loraxs_search.errors import TaskDataError
from loraxs_search.records.task import DataSource
from loraxs_search.tasks.kinds import ForwardRequest, Generated, GenerateRequest, Ragged, kind_of
from loraxs_search.tasks.prepared import encode, first_rows, load_data, prepare, served


@pytest.fixture
def make(write):
    """A task on a few rows, in all three splits."""
    return partial(writing_task, write)


def warned(task):
    return prepare(task, characters()).report.warnings


# ---- rows ------------------------------------------------------------------------------------------------------------
def test_labels_are_references_in_canonical_form(make):
    rows = load_data(make(**NUMBER))["train"]
    assert rows.texts == ["Two and two?", "Six and six?", "One and six?"]
    assert rows.extras == {"answer": [" The answer is 4", " The answer is 12", " The answer is 7"]}
    assert (rows.labels.tolist(), rows.labels.dtype.kind) == (["4", "12", "7"], "O")


def test_a_prompt_that_is_scored_is_as_long_as_one_that_is_asked(make):
    rows = [{"q": "a" * size, "a": "b" * 9} for size in (3, 25, 40)]
    task = make(rows=rows, max_length=32)
    data = prepare(task, characters())
    asking = data.kind.base_alone(data, "test", np.arange(3), 0)
    next(asking)
    scored = asking.send((torch.zeros(3), torch.zeros(3).long())).source.ids
    asked = encode(data.kind, data.tokenizer, [(row["q"],) for row in rows]).ids
    assert [scored.row(i).tolist() for i in range(3)] == [asked.row(i).tolist() for i in range(3)]
    assert scored.lengths.tolist() == [4, 26, 31]
    assert data.lengths("test").max() <= 32  # with the answers, which are learnt


def test_a_report_counts_the_tokens_of_whole_rows_last_one_included(make):
    data = prepare(make(), characters())
    most = max(len(data.encoded("train").whole_row(row)[0]) for row in range(data.num_rows("train")))
    assert data.report.tokens["train"]["longest"] == most
    cut = prepare(make(max_length=most - 1), characters()).report
    assert cut.cut["train"] > 0
    assert cut.tokens["train"]["longest"] == most, "longer than `max_length`, since rows are cut"


def test_a_row_is_shown_as_the_model_sees_it_with_trained_tokens_marked(make):
    row, *_ = first_rows(prepare(make(), characters()), 1)
    assert row == dict(
        zip(("text", "answer"), ("Two and two?[[ The answer is 4</s>]]", "The answer is 4"), strict=True)
    )


def test_without_reference_the_answer_is_held_against_itself(make):
    assert load_data(make())["test"].labels.tolist() == ["The answer is 4", "The answer is 12", "The answer is 7"]
    found = load_data(make(extract=NUMBER["extract"]))["test"]
    assert found.labels.tolist() == ["4", "12", "7"]


def test_a_test_file_without_answers_is_refused(make, write):
    task = make([{"q": f"w{i}", "a": "x", "n": "1"} for i in range(30)])
    hidden = write("hidden.jsonl", [{"q": "w", "a": "", "n": ""}] * 3)
    files = {"train": task.source.data_files["train"], "test": hidden}
    with pytest.raises(TaskDataError, match=r"hidden\.jsonl"):
        load_data(replace(task, source=DataSource(data_files=files)))


# ---- what is refused -------------------------------------------------------------------------------------------------
def test_keys_that_make_no_sense_are_refused(make):
    for keys, message in [
        ({"answer": "yes"}, "`answer` must name a column in braces"),
        ({"prompt": "why?"}, "`prompt` must name a column in braces"),
        ({"answer": "{a"}, "`answer` must close each brace"),
        ({"extract": {"after": "x", "regex": "(y)"}}, "`extract` must have one of: after, regex, but got both"),
        ({"generation": {"top_p": 0.9}}, "`generation.top_p` must stand beside a `temperature` above 0"),
        ({"generation": {"seed": 1, "temperature": 0.0}}, "`generation.seed` must stand beside"),
    ]:
        assert message in broken_laws(make(**keys))


def row(**changes):
    return {"q": "x", "a": "x", "n": "1"} | changes


STOPS = {"generation": {"max_new_tokens": 20, "stop": ["answer is"]}}
EXTRACT = {"extract": NUMBER["extract"]}
NO_ANSWER = "each row must have an answer, but"


def test_rows_that_do_not_fit_are_refused(make):
    for rows, keys, said in [
        ([row(a=" \n"), row(a=" \n")], {}, "rows.jsonl has rows without: line 4 and 1 more row."),
        ([row(a="The answer is (C)", n="C")], NUMBER, "rows.jsonl it finds nothing in 'C' (line 4)"),
        ([row(a="Nobody knows")], EXTRACT, "' Nobody knows' (line 4)"),
        ([row(q=" ", n="")], {}, "each row must have text, but"),
        ([row(q=" ", n="\n")], {"prompt": "{q} and {n}?"}, "(line 4)"),
        ([row(q=float("nan"))], {}, "`q` must be finite in each row, but"),
        ([row(q="o\udfff")], {}, "`q` must be Unicode, without half of a surrogate pair in each row, but"),
    ]:
        message = refused(make([*SUMS, *rows], **keys))
        assert said in message
        assert message.count(NO_ANSWER) in (0, 3), "once for each split"
        assert not (NO_ANSWER in message and "extract" in message), "each fault once"


def test_test_rows_need_an_answer_and_a_reference(make):
    for test, said in [
        ([{"q": row["q"], "a": row["a"]} for row in SUMS], "`reference.{n}` must be one of: "),
        ([{**row, "a": ""} for row in SUMS], NO_ANSWER),  # with references it is no hidden one
    ]:
        assert said in refused(make(SUMS, test=test, **NUMBER))


def test_what_people_should_know_of_their_rows_is_said(make):
    for rows, keys, said in [
        ([row(a="no")], STOPS, "3 of 4 train answers have the stop string 'answer is' in them"),
        ([], {"prompt": "{q} {a}:"}, "gives the answer away"),
        (
            [],
            {"generation": {"max_new_tokens": 17}},
            "1 of 3 train answers have more than max_new_tokens=17 tokens, the",
        ),
        ([], {"answer": " {q} {a}"}, None),
    ]:
        warnings = warned(make([*SUMS, *rows], **keys))
        assert any((said or "gives the answer away") in it for it in warnings) == bool(said)


def test_a_stop_string_may_end_the_answers(make):
    """The way to end answers where a base has no end token: it is learnt, and no part of what is compared."""
    task = make(answer=" {a}##", generation={"max_new_tokens": 20, "stop": ["##"]})
    rows = load_data(task)["train"]
    assert rows.labels.tolist() == [row["a"] for row in SUMS]
    assert rows.extras["answer"] == [f" {row['a']}##" for row in SUMS]
    assert not warned(task)


def test_the_base_must_have_space_for_what_is_written(make):
    task = make(max_length=500)
    with pytest.raises(TaskDataError, match=r"512 .*max_length=500"):
        prepare(task, characters())


def test_without_an_end_token_a_stop_string_is_needed(make):
    tokenizer = characters()
    tokenizer.eos_token = None
    with pytest.raises(TaskDataError, match=r"`generation\.stop`"):
        prepare(make(), tokenizer)
    prepare(make(generation={"max_new_tokens": 9, "stop": ["zz"]}), tokenizer)


# ---- each fault once, with what it breaks ----------------------------------------------------------------------------
def test_an_end_token_in_an_answer_is_refused(make):
    task = make([*SUMS, {"q": "x", "a": "so</s>", "n": "1"}])
    with pytest.raises(TaskDataError, match=r"</s> .* 'x\?' \(line 4\)"):
        prepare(task, characters())


def test_a_regular_expression_that_takes_ages_is_refused(make, monkeypatch):
    monkeypatch.setattr("loraxs_search.tasks.kinds.text_generation.MATCH_SECONDS", 0.01)
    rows = [*SUMS, {"q": "x", "a": "a" * 60 + "!", "n": "1"}]
    said = refused(make(rows, extract={"regex": "((?:a|aa)+|is .+)$"}))
    assert "seconds finds nothing" in said
    assert "(line 4)" in said


# ---- chat templates --------------------------------------------------------------------------------------------------
def test_a_chat_template_that_does_not_take_the_messages_is_told(make):
    for template, says in [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ messages[0].parts[0].text }}", "has no attribute 'parts'"),
    ]:
        task = make(prompt=None, messages=[{"role": "system", "content": "so"}, {"role": "user", "content": "{q}"}])
        ((fault, _),) = kind_of(task).tokenizer_faults(characters(chat=template))
        assert says in fault


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


def test_sampling_is_asked_for(make):
    generation = {"max_new_tokens": 5, "stop": ["z"], "temperature": 0.5, "top_p": 0.9, "seed": 3}
    data = prepare(make(generation=generation), characters())
    _, write = answered(data.kind.score(data, "test", np.array([0])), data, ["x"])
    assert (write.sampling.seed, write.sampling.temperature, write.sampling.top_p) == (3, 0.5, 0.9)
    assert write.stop == ("z",)


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


def test_an_adapter_is_served_as_it_was_trained(make):
    serving = kind_of(make(generation={"max_new_tokens": 9, "stop": ["z"], "temperature": 0.5})).serving
    assert (serving.prompt, serving.messages, serving.stop) == ("{q}?", (), ("z",))
    assert (serving.max_new_tokens, serving.temperature, serving.top_p) == (9, 0.5, 1.0)
    chat = kind_of(make(prompt=None, messages=[{"role": "user", "content": "{q}"}])).serving
    assert (chat.prompt, chat.messages) == (None, (("user", "{q}"),))


def test_what_ends_an_answer_is_of_base_tokenizer_and_chat(make):
    chat = kind_of(make(prompt=None, messages=[{"role": "user", "content": "{q}"}]))
    tokenizer, settings = characters(chat=CHAT), GenerationConfig(eos_token_id=[2, 3])
    assert served(kind_of(make()), tokenizer, None).ends == ("</s>",)
    assert served(chat, tokenizer, settings).ends == ("<s>", "</s>", "<|end|>")
    assert served(chat, tokenizer, None).messages == (("user", "{q}"),)


# ---- a champion that was trained to be asked in another way ----------------------------------------------------------
def asked(task, trained):
    return kind_of(task).asked_as(trained)


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
    kind = kind_of(own)
    assert load_data(own)["test"].labels.tolist() == load_data(task)["test"].labels.tolist() == ["4", "12", "7"]
    assert kind.extraction.find(" so #### 12. ") == "12"


def test_references_that_are_the_whole_answer_stay_the_tasks_own(make):
    task = make(extract={"after": "The answer is"})
    own = asked(task, make(answer=" {n}", extract=None))
    assert own.settings["reference"] == task.settings["answer"]
    assert "after" not in own.settings["extract"]
    other = load_data(own)["test"].labels.tolist()
    assert other != load_data(task)["test"].labels.tolist(), "then the two cannot be compared, and that is said"


@pytest.mark.parametrize("stop", ["END", "}"])
def test_references_that_are_the_whole_answer_lack_the_stop_string(make, stop):
    answer = " {a}" + stop.replace("}", "}}")
    task = make(answer=answer, generation={"max_new_tokens": 20, "stop": [stop]})
    own = load_data(asked(task, make(prompt="Q: {q}")))["test"]
    assert own.labels.tolist() == load_data(task)["test"].labels.tolist() == [row["a"] for row in SUMS]
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
