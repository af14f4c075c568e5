"""What `init` guesses of columns and answers; no base is at hand, so no token is counted."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import yaml
from support.rows import texts

from loraxs_search.errors import TaskDataError
from loraxs_search.scaffold.roles import UndecidedError


@pytest.fixture
def draft(drafted):
    """Draft a space of columns in a .csv, and return its task, and the draft."""

    def make(columns: Mapping[str, Sequence[Any]], **choices: Any) -> tuple[dict[str, Any], Any]:
        text = io.StringIO()
        csv.writer(text).writerows([list(columns), *zip(*columns.values(), strict=True)])
        made = drafted("rows.csv", text.getvalue(), **choices)
        return yaml.safe_load(made.text)["task"], made

    return make


PRICES = [round(random.Random(i).uniform(5, 500), 2) for i in range(80)]
WHOLE = [random.Random(i).randrange(10, 40) * 25 for i in range(80)]


def test_numbers_beside_words_are_the_answers(draft):
    for names, numbers, kind in (("Text,Toxicity", PRICES, None), ("price,description", WHOLE, "regression")):
        words, answers = sorted(names.split(","), key=lambda name: name.lower() not in ("description", "text"))
        columns = {words: texts(80), answers: numbers}
        task, made = draft({name: columns[name] for name in names.split(",")}, kind=kind)
        assert (task["kind"], task["columns"]) == ("regression", {"text": words, "label": answers})
        assert "--label" in made.guesses["answers"]


def test_numbers_that_are_not_written_plainly_are_no_classes(draft):
    written = {"text": texts(80), "price": [f"${1 + i % 4},200" for i in range(80)]}
    with pytest.raises(TaskDataError, match=r"'\$1,200' \(line 2, "):
        draft(written)
    task, _ = draft(written, kind="sequence-classification")
    assert len(task["labels"]) == 4


def test_numbers_that_tell_rows_apart_are_no_answers(draft):
    with pytest.raises(UndecidedError) as asked:
        draft({"number": range(80), "first": texts(80), "second": texts(80)[::-1]})
    assert (asked.value.option, asked.value.default) == ("label", "")
    task, _ = draft({"id": range(80), "note": texts(80), "price": PRICES})
    assert task["columns"] == {"text": "note", "label": "price"}


def test_many_values_that_come_again_are_rather_classes_than_words(draft):
    for times, kind in ((4, "sequence-classification"), (1, "text-generation")):
        with pytest.raises(UndecidedError) as asked:
            draft({"text": texts(240), "intent": [f"kind {i // times}" for i in range(240)]})
        assert (asked.value.option, asked.value.default) == ("kind", kind)


def test_a_date_is_neither_text_nor_answer(draft):
    dates = [f"2024-{1 + i % 12:02}-{1 + i % 28:02} 10:30:00" for i in range(80)]
    task, _ = draft({"created": dates, "note": texts(80), "price": PRICES})
    assert task["columns"] == {"text": "note", "label": "price"}
    with pytest.raises(UndecidedError) as asked:
        draft({"created": dates, "label": [i % 2 for i in range(80)], "day": dates})
    assert (asked.value.option, asked.value.default) == ("text", "")


def test_numbers_of_many_values_with_an_order_are_a_regression(draft):
    for values, kind in (
        (range(18, 31), "regression"),
        (range(1, 6), "sequence-classification"),
        (range(20), "sequence-classification"),  # numbered from 0 without a gap, as programs number classes
    ):
        task, _ = draft({"text": texts(400), "label": [values[i % len(values)] for i in range(400)]})
        assert task["kind"] == kind


# ---- names that look alike -------------------------------------------------------------------------------------------
def labelled(counts: Mapping[str, int]) -> dict[str, list[str]]:
    labels = [name for name, count in counts.items() for _ in range(count)]
    return {"text": texts(len(labels)), "label": labels}


def test_many_labels_that_look_alike_numbered_ones_and_those_of_many_rows_are_no_mistakes(draft):
    names = ("delivery_late", "refund_asked", "login_fails", "invoice_wrong", "app_crashes")
    for counts in (
        {f"intent_{i}": 10 + i for i in range(77)},
        {"card_arrival": 12, "card_arrived": 8} | {f"{'abcdefghij'[i]}{i}" * 4: 100 for i in range(10)},
        dict.fromkeys(names, 100) | {f"{name}s": 2 for name in names},
    ):
        task, _ = draft(labelled(counts))
        assert set(task["labels"]) == set(counts)
    with pytest.raises(TaskDataError) as caught:
        draft(labelled({"delivery_late": 100, "delivery_lates": 1, "other": 100}))
    assert "did you mean 'delivery_late'?" in caught.value.message


# ---- options in columns ----------------------------------------------------------------------------------------------
OPTIONS: list[tuple[Sequence[str], list[str], list[str] | None]] = [
    (["option_a", "option_b", "option_c"], list("ABC"), None),
    (["opt1", "opt2", "opt3"], ["1", "2", "3"], ["1", "2", "3"]),
    (["choice1", "choice2"], ["0", "1"], None),
    ("AB", list("ab"), ["a", "b"]),
]


def test_columns_of_options_are_multiple_choice(draft):
    for names, answers, option_names in OPTIONS:
        columns = {name: [f"{name} {text}" for text in texts(60)] for name in names}
        task, made = draft({"question": texts(60), **columns, "answer": [answers[i % len(answers)] for i in range(60)]})
        assert (task["kind"], task["label"]) == ("multiple-choice", "answer")
        assert made.guesses["options"].startswith(", ".join(names))
        assert task["options"] == [f" {{{name}}}" for name in names]
        assert task.get("option_names") == option_names
    task, _ = draft({"question": texts(60), **columns, "correct": columns["A"]})  # or the answer itself
    assert (task["kind"], task["options"]) == ("multiple-choice", [" {A}", " {B}"])


def test_letters_that_name_no_option_are_no_choice(draft):
    columns = {name: texts(60) for name in ("a", "b")}
    task, _ = draft({"question": texts(60), **columns, "label": ["x", "y"] * 30})
    assert task["kind"] == "sequence-classification"
