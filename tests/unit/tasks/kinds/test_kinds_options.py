"""Multiple choice: rows and their labels, what is refused and warned of."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from support.characters import characters
from support.text_tasks import choosing_task, labelled, refused

from loraxs_search.errors import TaskDataError
from loraxs_search.tasks.kinds import checked, items_of
from loraxs_search.tasks.prepared import load_data, prepare


@pytest.fixture
def make(write):
    """A task on a few rows, in all three splits."""
    return partial(choosing_task, write)


# ---- rows ------------------------------------------------------------------------------------------------------------
def test_options_of_a_column_are_part_of_what_a_row_is(make):
    rows = load_data(make()).rows["train"]
    assert rows.texts == ["Sky?", "Sum?"]
    assert rows.pairs == ["blue | red", "1 | 2 | 33"]
    assert rows.extras == {"options": [[" blue", " red"], [" 1", " 2", " 33"]]}
    assert (rows.labels.tolist(), rows.labels.dtype) == ([0, 2], np.int64)


@pytest.mark.parametrize(
    ("prompt", "options", "first"),
    [
        ("{q}? ", "choices", "blue"),
        ("{q}", "choices", " blue"),
        ("{q}?", "{choices}", "blue"),
        ("{q}?", "->{choices}.", "->blue."),
    ],
)
def test_a_column_gets_a_space_where_the_prompt_has_none_and_a_template_is_as_written(make, prompt, options, first):
    assert load_data(make(prompt=prompt, options=options)).rows["train"].extras["options"][0][0] == first


def test_options_from_templates_are_fixed_or_filled(make):
    fixed = load_data(make(labelled(["no", "yes"]), options=[" no", " yes"])).rows["train"]
    assert (fixed.pairs, fixed.extras, fixed.labels.tolist()) == (None, {}, [0, 1])
    filled = load_data(make([{"q": "q", "x": 1, "y": 2.5, "answer": "B"}] * 2, options=[" {x}", " {y} {x}"])).rows[
        "train"
    ]
    assert filled.extras["options"][0] == [" 1", " 2.5 1"]
    assert filled.labels.tolist() == [1, 1]


def test_a_text_may_hold_the_list_as_json(make):
    rows = [{"q": "q", "choices": '["x | y", "z"]', "answer": "z"}]
    assert load_data(make(rows)).rows["train"].extras["options"] == [[" x | y", " z"]]


def test_a_text_of_many_brackets_is_no_list(make):
    assert items_of("[" * 100_000) == "[" * 100_000
    assert "be a list of texts or numbers" in refused(make([{"q": "q", "choices": "[" * 100_000, "answer": 0}]))


@pytest.mark.parametrize(
    ("answers", "labels"),
    [
        ([0, 2, 1], [0, 2, 1]),
        (["0", "2"], [0, 2]),
        ([1.0, 2.0], [1, 2]),
        (["A", "C"], [0, 2]),
        (["a", "b"], [0, 1]),
        (["c", "a "], [2, 0]),
    ],
)
def test_labels_are_indices_letters_or_texts(make, answers, labels):
    assert load_data(make(labelled(answers))).rows["train"].labels.tolist() == labels


def test_numbers_that_are_texts_of_options_are_read_as_such_where_no_index_fits(make):
    assert load_data(make(labelled([4, 5], [3, 4, 5]))).rows["train"].labels.tolist() == [1, 2]
    assert load_data(make(labelled([True, False], ["false", "true"]))).rows["train"].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("answers", "names", "labels"),
    [
        (["1", "3"], ["1", "2", "3"], [0, 2]),
        ([1, 3.0], ["1", "2", "3"], [0, 2]),
        ([True, False], ["false", "maybe", "true"], [2, 0]),
    ],
)
def test_labels_by_names_of_the_options(make, answers, names, labels):
    assert load_data(make(labelled(answers), option_names=names)).rows["train"].labels.tolist() == labels


def test_labels_by_names_in_a_part_of_a_column(make):
    """As in ARC, where most rows have letters and some numbers."""
    choices = [{"text": ["x", "y"], "label": ["A", "B"]}, {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}]
    rows = [{"q": f"q{i}", "choices": it, "answer": own} for i, (it, own) in enumerate(zip(choices, "B3", strict=True))]
    task = make(rows, options="choices.text", option_names="choices.label")
    assert load_data(task).rows["train"].labels.tolist() == [1, 2]
    assert load_data(task).rows["train"].extras["options"][0] == [" x", " y"]


# ---- what is refused -------------------------------------------------------------------------------------------------
def test_labels_that_can_be_read_in_two_ways_are_refused(make):
    message = refused(make(labelled([1, 2], ["1", "2", "3"])))
    assert "can be read as index and as text, and 1 (line 1), 2 (line 2) would mean ' 2' or ' 1'" in message
    message = refused(make(labelled(["B", "A"], ["B", "A"])))
    assert "as letter and as text, and 'B' (line 1), 'A' (line 2) would mean ' A' or ' B'" in message
    assert load_data(make(labelled(["A", "B"], ["A", "B"]))).rows["train"].labels.tolist() == [0, 1], (
        "both say the same"
    )


def test_a_label_outside_the_options_is_named_by_the_reading_of_the_others(make):
    assert (
        "`answer` must be the index, counted from 0, of one of its row's options, as it is in 2 other rows, but"
        in refused(make(labelled([0, 3, 1, 3])))
    )
    assert "has 3 (line 2 and 1 more row)." in refused(make(labelled([0, 3, 1, 3])))
    assert "letter, from A, of one of its row's options, as it is in 2" in refused(make(labelled(["A", "D", "B"])))
    assert "text of one of its row's options, as it is in 2" in refused(make(labelled(["aa", "d", "b"], ["aa", "b"])))
    assert "must be the index, letter or text of an option, but" in refused(make(labelled([None, "z"])))
    assert "-1 (line 1)" in refused(make(labelled([-1, 1])))


def test_a_label_that_is_no_name_and_names_that_do_not_fit_are_refused(make):
    message = refused(make(labelled(["1", "0"]), option_names=["1", "2", "3"]))
    assert "`answer` must be one of the names of its row's options, but" in message
    assert "'0' (line 2)" in message
    rows = [row | {"names": names} for row, names in zip(labelled(["a", "a"]), (["a", "b"], None), strict=True)]
    assert "`option_names` must hold a name for each option of its row, but" in refused(
        make(rows, option_names="names")
    )


def test_every_fault_of_a_file_is_named_at_once_with_its_line(make):
    rows = [
        {"q": "a", "choices": ["x"], "answer": 0},
        {"q": None, "choices": ["x", "y"], "answer": 1},
        {"q": "c", "choices": None, "answer": 0},
        {"q": "d", "choices": ["x", " "], "answer": 0},
        {"q": "e", "choices": ["x", " x"], "answer": 0},
        {"q": "f", "choices": ["x", "y"], "answer": 2},
        {"q": "g", "choices": ["x", None], "answer": 0},
    ]
    message = refused(make(rows))
    for law in (
        "be two or more, but PLACE has ['x'] (line 1)",
        "be a list of texts or numbers, but PLACE has None (line 3), ['x', None] (line 7)",
        "each have text, but PLACE has ['x', ' '] (line 4)",
        "`q` must have a value in each row, but PLACE has None (line 2)",
        "as it is in 2 other rows, but PLACE has 2 (line 6)",
    ):
        path = make(rows).source.data_files["train"]
        assert law.replace("PLACE", path) in message, law
    assert message.startswith("Task choice has 15 faults:"), (
        "five in each of three splits; line 5 is odd, and data sets have such rows"
    )


def test_columns_that_are_missing_are_named_with_their_nearest(make):
    message = refused(make(prompt="{qq} {x}?", options="choice", label="answr"))
    assert "`prompt.{qq}` must be one of: q, answer, choices, but got 'qq'." in message
    assert "`prompt.{x}` must be one of" in message
    assert "`options` must be one of: choices, answer, q, but got 'choice'." in message
    assert "`label` must be one of: answer, choices, q, but got 'answr'." in message
    assert "`options.{y}` must be one of" in refused(make(options=["{q}", "{y}"]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompt": None}, "`prompt` must be given, or else `messages`, but got neither."),
        ({"messages": [{"role": "user", "content": "{q}"}]}, "`messages`, but got both."),
        ({"options": [" yes"]}, '`options` must be two or more, but got [" yes"].'),
        ({"options": [" yes", "yes"]}, "`options` must differ from each other"),
        ({"options": [" yes", " "]}, "`options` must each have text"),
        (
            {"options": [" yes", " no"], "option_names": ["1"]},
            "`option_names` must name each of the 2 options, but got",
        ),
        ({"options": "{a} {b}"}, "`options` must name the one column that holds lists, but got '{a} {b}'."),
        ({"prompt": "{q} {answer}"}, "`label` must be no column of the prompt"),
        (
            {"prompt": None, "messages": [{"role": "user", "content": "{q}"}, {"role": "assistant", "content": "x"}]},
            "`messages` must end with a message of the user, but the last one is of the assistant.",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(make, keys, message):
    with pytest.raises(TaskDataError) as error:
        checked(make(**keys))
    assert message in str(error.value)


def test_classes_are_scored_only_where_options_are_the_same_in_each_row(make):
    options = checked(make(labelled([0, 1]), options=["x", "y"])).fitting_metrics({"options": ["x", "y"]})
    assert "macro_f1" in options
    assert "macro_f1" not in checked(make()).fitting_metrics({"options": "choices"})


@pytest.mark.parametrize(
    ("label", "keys"),
    [
        ("None", {"options": [" None", " Some"]}),
        (-1, {"options": ["x", "y"], "option_names": ["-1", "1"]}),
        ("None", {}),
        ("-1", {"option_names": "names"}),
    ],
)
def test_a_label_that_names_an_option_is_not_hidden(make, write, label, keys):
    rows = [row | {"names": ["-1", "1"]} for row in labelled([label] * 40, ["None", "Some"])]
    task = make(rows, **keys)
    assert [len(own) for own in load_data(task).rows.values()] == [40, 40, 40]


# ---- options that are equal, and where they begin --------------------------------------------------------------------
def test_a_label_is_an_option_that_looks_like_it(make):
    rows = labelled(["cafe\u0301", "tea"], ["tea", "caf\u00e9"])
    assert load_data(make(rows)).rows["train"].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "normalize", "warned"),
    [
        (["1", "12"], "none", True),
        (["1", "12"], "tokens", False),
        (["1.", "12."], "none", False),
        (["1", "1"], "none", False),
    ],
)
def test_an_option_that_goes_on_where_another_ends_is_warned_of(make, options, normalize, warned):
    """A model that writes `12` writes `1` first: the longer one is never the likelier one."""
    data = prepare(make(labelled([0, 1], options), normalize=normalize), characters())
    assert any("is always likelier" in warning for warning in data.report.warnings) == warned


@pytest.mark.parametrize("label", [1, "B", "x"])
def test_of_equal_options_the_first_is_right(make, label):
    """Their likelihoods are equal, and the first of the likeliest is the answer."""
    rows = [{"q": "q", "choices": ["x", "x", "y"], "answer": label}, {"q": "p", "choices": ["a", "x"], "answer": label}]
    assert load_data(make(rows)).rows["train"].labels.tolist() == [0, 1]


def test_of_equal_options_the_first_is_right_by_name_too(make):
    rows = [{"q": "q", "choices": ["x", "x", "y"], "answer": "2", "names": ["1", "2", "3"]}]
    assert load_data(make(rows, option_names="names")).rows["train"].labels.tolist() == [0]


def test_names_of_options_must_differ(make):
    rows = [{"q": "q", "choices": ["x", "y"], "answer": "A", "names": ["A", "A"]}]
    assert "`option_names` must hold names that differ from each other, but" in refused(
        make(rows, option_names="names")
    )
    with pytest.raises(TaskDataError, match=r'`option_names`.*\["A", "A"\]'):
        checked(make(options=[" x", " y"], option_names=["A", "A"]))


@pytest.mark.parametrize("item", [["b"], {"text": "b"}])
def test_a_list_or_a_map_among_options_is_refused(make, item):
    rows = [{"q": "q", "choices": ["a", item], "answer": 0}]
    assert "the options of a row must be a list of texts or numbers, but" in refused(make(rows))


@pytest.mark.parametrize(
    ("prompt", "options", "warned"),
    [
        ("{q}\nAnswer:", ["yes", "no"], "'ky\\nAnswer:yes'"),
        ("{q}\nAnswer:", [" yes", "no"], "'ky\\nAnswer:no'"),
        ("{q}", ["yes", "no"], "'Skyyes'"),
        ("{q}\nAnswer:", [" yes", " no"], ""),
        ("{q}\nAnswer:\n", ["yes", "no"], ""),
        ("{q} (", ["yes", "no"], ""),
        ("{q}\uff1f", ["是", "否"], ""),
    ],
)
def test_options_that_run_on_from_their_prompt_are_warned_of(make, prompt, options, warned):
    task = make([{"q": "Sky", "answer": 0}, {"q": "Sum", "answer": 1}], prompt=prompt, options=options)
    rows = load_data(task).rows
    said = [it for it in checked(task).warnings(rows, {}) if "without a space" in it]
    assert len(said) == bool(warned)
    if warned:
        assert said[0].startswith("6 of 6 answers follow their prompt without a space, as in ")
        assert warned in said[0]
