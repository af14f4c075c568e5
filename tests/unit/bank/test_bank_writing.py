"""What a bank of adapters that write and choose refuses, in one form, before anything is computed."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from support.toy_language import choosing, save_base, writing
from transformers import GenerationConfig

from loraxs_search import AdapterBank
from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.locate import locate
from loraxs_search.errors import BaseModelError, TaskDataError, UsageError
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.predictor import Predictor
from loraxs_search.records.task import BaseModelRef, TaskModel

TASKS = {
    "one": writing(prompt="say {words}"),
    "two": writing(prompt="{first} say {second}"),
    "listed": choosing(options="choices"),
    "four": choosing(options=["{a}", "{b}", "{c}", "{d}"]),
}


@pytest.fixture(scope="module")
def bank(make_adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("writing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(folder / "home"))
        save_base(folder / "base")
        base = locate(BaseModelRef(str(folder / "base")))
        modules = tuple(module.name for module in linear_modules(base, TaskModel("AutoModelForCausalLM")))
        bank = AdapterBank(base, task_model=TaskModel("AutoModelForCausalLM"))
        for name, task in TASKS.items():
            made = make_adapter(folder / name, base, task=task, seed=3, rank=4, target_modules=modules)
            bank.load(name, made)
        yield bank


ROWS = [
    ("one", "", "must be given text to read, but row 1 of the request has none", "leave out"),
    ("one", None, "must be given one text per row, but the request has None", "as a str in Python"),
    ("one", float("nan"), "must be given one text per row, but the request has nan", "as a str in Python"),
    ("two", "w1", "must be given two texts per row, but got 'w1'", "a row is first then second"),
    ("two", {"first": "w1", "second": "w2"}, "two texts per row, but got {'first'", "a row is first then second"),
    ("listed", ("w1", "w2"), "the options of a row must be two or more", "correct or remove"),
    ("listed", ("w1", ["w2", {}]), "options of a row must", "correct or remove"),
    ("listed", ("w1", "w2 | " + "w3 " * 40), "must fit `max_length` with a token of its prompt", "raise"),
    ("four", ("w1", "w2", "w3"), "5 texts per row, but got ('w1', 'w2', 'w3')", "words then a then b"),
]


def test_a_row_that_does_not_fit_its_task_is_named(bank):
    for name, row, message, hint in ROWS:
        with pytest.raises(TaskDataError) as error:
            bank.predict(name, [row])
        assert message in str(error.value)
        assert hint in str(error.value.hint)
    for row in ((" ", ""), ("w1", None), ("w1", "w2 | " + "w3 " * 40)):  # counted over several tasks
        with pytest.raises(TaskDataError, match=r"\brow 3\b"):
            bank.predict(["one", "listed", "listed"], ["w1", ("w1", "w2 | w3"), row])


def test_a_base_that_ends_answers_elsewhere_is_refused(make_adapter, tmp_path):
    save_base(tmp_path / "base")
    base = locate(BaseModelRef(str(tmp_path / "base")))
    modules = (linear_modules(base, TaskModel("AutoModelForCausalLM"))[0].name,)
    old = make_adapter(tmp_path / "old", base, task=TASKS["one"], rank=4, target_modules=modules)
    new = make_adapter(tmp_path / "new", base, task=TASKS["one"], rank=4, target_modules=modules)
    written = json.loads((new / "manifest.json").read_text()) | {"ends": ["[END]"]}
    (new / "manifest.json").write_text(json.dumps(written))
    Predictor(new).load()
    AdapterBank(base, task_model=TaskModel("AutoModelForCausalLM")).load("new", new)
    GenerationConfig(eos_token_id=[2, 3]).save_pretrained(base.path)
    Predictor(old).load()  # of a version that stored no ends
    bank = AdapterBank(base, task_model=TaskModel("AutoModelForCausalLM"))
    bank.load("old", old)
    for load in (Predictor(new).load, lambda: bank.load("new", new), lambda: load_adapter_folder(new)):
        with pytest.raises(BaseModelError) as error:
            load()
        assert "revision" in str(error.value.hint)
    assert bank.names == ["old"]


def test_values_are_read_as_in_training(bank):
    for number, text in ((3, "3"), (2.0, "2"), (np.float64(2.5), "2.5"), (True, "true")):
        assert [one.label for one in bank.predict("one", [number])] == [bank.predict("one", [text])[0].label]
    assert bank.predict("two", [("w1", 4)])[0].label == bank.predict("two", [("w1", "4")])[0].label
    assert bank.predict("listed", [(3, ["w2", "w3"])])[0].label == bank.predict("listed", [("3", "w2 | w3")])[0].label


def test_each_row_of_a_table_has_the_columns_of_its_task(bank):
    table = pd.DataFrame(
        {
            "first": ["w4", None, None],
            "choices": [None, ["w2", "w3"], None],
            "second": ["w5", None, None],
            "words": [None, "w1", "w6"],
        }
    )
    rows = [("w4", "w5"), ("w1", ["w2", "w3"]), "w6"]
    assert bank.predict(["two", "listed", "one"], table) == bank.predict(["two", "listed", "one"], rows)
    with pytest.raises(UsageError, match="must have the column a, which the task reads"):
        bank.predict("four", table)
    with pytest.raises(UsageError, match="got 1 for 3"):
        bank.predict(["one"], table)


def test_rows_without_a_mask_are_whole(bank):
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    masked = bank.logits(["one", None], {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    for found, expected in zip(bank.logits(["one", None], {"input_ids": ids}), masked, strict=True):
        torch.testing.assert_close(found, expected)
