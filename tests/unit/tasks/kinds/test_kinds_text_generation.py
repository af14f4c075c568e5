"""Text generation: rows and references, what is refused and warned of."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from functools import partial

import pytest
from support.characters import characters
from support.text_tasks import NUMBER, SUMS, refused, writing_task

from loraxs_search.errors import TaskDataError
from loraxs_search.records.task import DataSource, Task
from loraxs_search.tasks.kinds import checked
from loraxs_search.tasks.prepared import encode, first_rows, load_data, prepare
from loraxs_search.tasks.report import data_warnings


@pytest.fixture
def make(write):
    """A task on a few rows, in all three splits."""
    return partial(writing_task, write)


def warned(task: Task) -> tuple[str, ...]:
    return prepare(task, characters()).report.warnings


# ---- rows ------------------------------------------------------------------------------------------------------------
def test_labels_are_references_in_canonical_form(make):
    rows = load_data(make(**NUMBER)).rows["train"]
    assert rows.texts == ["Two and two?", "Six and six?", "One and six?"]
    assert rows.extras == {"answer": [" The answer is 4", " The answer is 12", " The answer is 7"]}
    assert (rows.labels.tolist(), rows.labels.dtype.kind) == (["4", "12", "7"], "O")


def test_a_prompt_that_is_scored_is_as_long_as_one_that_is_asked(make):
    rows = [{"q": "a" * size, "a": "b" * 9} for size in (3, 25, 40)]
    task = make(rows=rows, max_length=32)
    data = prepare(task, characters())
    scored = data.kind.asked_again(data.encoded("test")).ids
    asked = encode(data.kind, data.tokenizer, [(row["q"],) for row in rows]).ids
    assert [scored.row(i).tolist() for i in range(3)] == [asked.row(i).tolist() for i in range(3)]
    assert scored.lengths.tolist() == [4, 26, 31]
    assert data.lengths("test").max() <= 32  # with the answers, which are learnt


def test_a_report_counts_the_tokens_of_whole_rows_last_one_included(make):
    data = prepare(make(), characters())
    most = max(len(data.encoded("train").whole_row(row)[0]) for row in range(data.num_rows("train")))
    assert data.report.tokens["train"].longest == most
    cut = prepare(make(max_length=most - 1), characters()).report
    assert cut.cut["train"] > 0
    assert cut.tokens["train"].longest == most, "longer than `max_length`, since rows are cut"


def test_a_row_is_shown_as_the_model_sees_it_with_trained_tokens_marked(make):
    row, *_ = first_rows(prepare(make(), characters()), 1)
    assert (row.text, row.answer) == ("Two and two?[[ The answer is 4</s>]]", "The answer is 4")


def test_one_long_answer_takes_its_memory_once(make):
    answers = ["x" * 100_000, *map(str, range(200))]
    rows = [{"q": f"q{i}", "a": answer} for i, answer in enumerate(answers)]
    tracemalloc.start()
    labels = load_data(make(rows=rows)).rows["train"].labels
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(labels) > 100
    assert peak < 20_000_000  # 80 MB where each text is as wide as the longest


def test_without_reference_the_answer_is_held_against_itself(make):
    assert load_data(make()).rows["test"].labels.tolist() == ["The answer is 4", "The answer is 12", "The answer is 7"]
    found = load_data(make(extract=NUMBER["extract"])).rows["test"]
    assert found.labels.tolist() == ["4", "12", "7"]


def test_a_test_file_without_answers_is_refused(make, write):
    task = make([{"q": f"w{i}", "a": "x", "n": "1"} for i in range(30)])
    hidden = write("hidden.jsonl", [{"q": "w", "a": "", "n": ""}] * 3)
    files = {"train": task.source.data_files["train"], "test": hidden}
    with pytest.raises(TaskDataError, match=r"hidden\.jsonl"):
        load_data(replace(task, source=DataSource(data_files=files)))


def without_answers(rows):
    return [{key: value for key, value in row.items() if key != "a"} for row in rows]


def test_test_rows_need_no_answer_where_a_reference_is_compared(make):
    data = load_data(make(test=without_answers(SUMS), **NUMBER))
    assert data.rows["test"].labels.tolist() == data.rows["train"].labels.tolist() == ["4", "12", "7"]
    assert (data.rows["test"].extras, len(data.rows["train"].extras["answer"])) == ({}, 3)
    prepared = prepare(make(test=without_answers(SUMS), **NUMBER), characters())
    assert prepared.encoded("test").targets is None
    assert prepared.encoded("train").targets is not None
    assert prepared.report.warnings == ()


def test_a_file_without_answers_is_for_testing_alone_whatever_was_read_before(make):
    rows = without_answers(SUMS)
    assert len(load_data(make(test=rows, **NUMBER)).rows["test"]) == 3  # and cached
    assert "`answer.{a}` must be one of: " in refused(make(rows, **NUMBER))


@pytest.mark.parametrize("metric", ["loss", "token_accuracy"])
def test_a_metric_of_the_answers_tokens_needs_them_in_the_test_rows(make, metric):
    task = make(test=without_answers(SUMS), metrics=("exact_match", metric), **NUMBER)
    assert "`answer.{a}` must be one of: " in refused(task)


def test_a_column_that_prompt_or_reference_needs_too_is_needed(make):
    rows = [{"q": row["q"], "a": row["a"]} for row in SUMS]
    assert "`reference.{n}` must be one of: " in refused(make(test=rows, **NUMBER))
    both = {**NUMBER, "answer": " {q}: {n}"}
    assert checked(make(**both)).spare_in_test == frozenset()


def test_a_test_split_with_references_is_no_hidden_one(make):
    blank = [{**row, "a": ""} for row in SUMS]
    assert "each row must have an answer" in refused(make(test=blank, **NUMBER))


# ---- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"answer": "yes"}, "`answer` must name a column in braces"),
        ({"reference": "yes"}, "`reference` must name a column in braces"),
        ({"prompt": "why?"}, "`prompt` must name a column in braces"),
        ({"answer": "{a"}, "`answer` must close each brace"),
        ({"extract": {"after": "x", "regex": "(y)"}}, "`extract` must have one of: after, regex, but got both"),
        ({"extract": {"regex": "b"}}, "must have a group, in round brackets"),
        ({"generation": {"top_p": 0.9}}, "`generation.top_p` must stand beside a `temperature` above 0"),
        ({"generation": {"seed": 1, "temperature": 0.0}}, "`generation.seed` must stand beside"),
        ({"metrics": ("accuracy",)}, "`accuracy` does not fit text-generation"),
    ],
)
def test_keys_that_make_no_sense_are_refused(make, keys, message):
    with pytest.raises((TaskDataError, ValueError), match=message):
        make(**keys)


@pytest.mark.parametrize("answer", ["", " \n"])
def test_a_row_without_an_answer_is_refused(make, answer):
    message = refused(make([*SUMS, {"q": "x", "a": answer, "n": "1"}, {"q": "y", "a": answer, "n": "1"}]))
    assert "each row must have an answer, but" in message
    assert "rows.jsonl has rows without: line 4 and 1 more row." in message
    assert "write their answers, or remove the rows" in message
    assert message.count("each row must") == 3, "once for each split"
    assert "extract" not in message


def test_an_extraction_that_finds_nothing_in_references_is_refused(make):
    message = refused(make([*SUMS, {"q": "x", "a": "The answer is (C)", "n": "C"}], **NUMBER))
    assert "`extract` must find something in each row's reference, but in" in message
    assert "rows.jsonl it finds nothing in 'C' (line 4)" in message
    lost = refused(make([*SUMS, {"q": "x", "a": "Nobody knows", "n": "5"}], extract=NUMBER["extract"]))
    assert "in each row's answer, but in" in lost
    assert "' Nobody knows' (line 4)" in lost


def test_a_stop_string_in_every_answer_is_refused_and_in_some_warned_of(make):
    stops = {"generation": {"max_new_tokens": 20, "stop": ["answer is"]}}
    message = refused(make(**stops))
    assert "'answer is' is in every answer" in message
    assert "take it out of `generation.stop`" in message
    task = make([*SUMS, {"q": "x", "a": "no", "n": "1"}], **stops)
    warnings = warned(task)
    assert len(warnings) == 3
    assert warnings[0].startswith("3 of 4 train answers have the stop string 'answer is' in them")


def test_a_stop_string_may_end_the_answers(make):
    """The way to end answers where a base has no end token: it is learnt, and no part of what is compared."""
    task = make(answer=" {a}##", generation={"max_new_tokens": 20, "stop": ["##"]})
    rows = load_data(task).rows["train"]
    assert rows.labels.tolist() == [row["a"] for row in SUMS]
    assert [it for (it,) in checked(task).learnt_texts(rows)] == [f" {row['a']}##" for row in SUMS]
    assert not warned(task)


def test_an_answer_that_the_prompt_gives_away_is_warned_of(make):
    assert any("gives the answer away" in it for it in warned(make(prompt="{q} {a}:")))
    assert not any("gives the answer away" in it for it in warned(make(answer=" {q} {a}")))


def test_answers_that_are_no_right_answer_are_counted(make):
    rows = [*SUMS, {"q": "x", "a": "The answer is 3", "n": "5"}, {"q": "y", "a": "Who knows", "n": "5"}]
    task = make(rows, **NUMBER)
    warnings = warned(task)
    assert "`extract` finds nothing in 1 of 5 train answers: whoever writes them" in warnings[0]
    assert "1 of 5 train answers say something else than their `reference`" in warnings[1]
    prepared = prepare(task, characters())
    assert set(warnings) <= set(data_warnings(prepared.report, prepared.report.num_rows, "exact_match"))


def test_answers_that_are_longer_than_what_may_be_written_are_counted(make):
    warnings = warned(make(generation={"max_new_tokens": 17}))
    assert len(warnings) == 3
    assert warnings[0].startswith("1 of 3 train answers have more than max_new_tokens=17 tokens, the longest 18")


def test_a_prompt_that_ends_in_a_space_is_warned_of(make):
    task = make(prompt="{q}: ", answer="{a}")
    assert any("prompts end in white space" in it for it in warned(task))


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
def test_a_row_with_nothing_in_its_prompt_but_the_templates_words_is_refused(make):
    blank = {"q": " ", "a": "x", "n": ""}
    assert "each row must have text, but" in refused(make([*SUMS, blank]))
    assert "(line 4)" in refused(make([*SUMS, {**blank, "n": "\n"}], prompt="{q} and {n}?"))
    assert "(line 4)" in refused(make([*SUMS, blank], prompt=None, messages=[{"role": "user", "content": "So {q}"}]))
    assert len(load_data(make([*SUMS, {**blank, "n": "4"}], prompt="{q} and {n}?")).rows["train"]) == 4


@pytest.mark.parametrize(
    ("value", "law"),
    [
        (None, "have a value"),
        (float("nan"), "be finite"),
        ("o\udfff", "be Unicode, without half of a surrogate pair"),
    ],
)
def test_a_value_that_no_template_takes_is_refused_with_the_reason(make, value, law):
    said = refused(make([*SUMS, {"q": value, "a": "x", "n": "1"}]))
    assert f"`q` must {law} in each row, but" in said
    assert "(line 4)" in said


def test_an_end_token_in_an_answer_is_refused(make):
    task = make([*SUMS, {"q": "x", "a": "so</s>", "n": "1"}])
    with pytest.raises(TaskDataError, match=r"</s> .* 'x\?' \(line 4\)"):
        prepare(task, characters())


def test_a_regular_expression_that_takes_ages_is_refused(make, monkeypatch):
    monkeypatch.setattr("loraxs_search.tasks.kinds._answers.MATCH_SECONDS", 0.01)
    rows = [*SUMS, {"q": "x", "a": "a" * 60 + "!", "n": "1"}]
    said = refused(make(rows, extract={"regex": "((?:a|aa)+|is .+)$"}))
    assert "`extract.regex` must be found or missed in" in said
    assert "(line 4)" in said


def test_a_regular_expression_that_takes_ages_on_answers_is_warned_of(make, monkeypatch):
    monkeypatch.setattr("loraxs_search.tasks.kinds._answers.MATCH_SECONDS", 0.01)
    rows = [{"q": f"x{i}", "a": "a" * 60 + "!", "n": "b"} for i in range(3)]
    task = make(rows, reference="{n}", extract={"regex": "((?:a|aa)+|b)$"}, max_length=80)
    assert any("`extract.regex` takes longer than" in text for text in warned(task))


# ---- chat templates --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{% for m in messages %}{{ m.content ", "unexpected end of template"),
        ("{{ messages[0].parts[0].text }}", "has no attribute 'parts'"),
    ],
)
def test_a_chat_template_that_does_not_take_the_messages_is_told(make, template, says):
    task = make(prompt=None, messages=[{"role": "system", "content": "so"}, {"role": "user", "content": "{q}"}])
    with pytest.raises(TaskDataError, match="`messages`") as error:
        checked(task).check_tokenizer(characters(chat=template))
    assert says in str(error.value)
