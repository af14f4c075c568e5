"""`predict` of rows as they are typed and of trials; `loraxs_search.load` in Python."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pandas as pd
import pytest
from support.said import Said

import loraxs_search
from loraxs_search.errors import StudyError, TaskDataError, UsageError

TEXTS = ["a moving, funny film", 'it says "no"', "two\nlines\tand a tab", "ende, süß"]
Say = Callable[..., Said]


# ---- row after row ---------------------------------------------------------------------------------------------------
def test_rows_are_answered_as_they_are_typed(say, adapter, writer, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a fine film\n\nso so"))
    assert say("predict", str(adapter), "--repl").ok == say("predict", str(adapter), "a fine film", "so so").ok
    monkeypatch.setattr("sys.stdin", io.StringIO("w1\nw2 w3\nw4\nw5\nw6"))  # the last row is not complete
    said = say("predict", str(writer), "--repl")
    plain = say("predict", str(writer), "w1", "w2 w3", "w4", "w5").ok
    assert [line.strip() for line in said.ok.splitlines()] == plain.splitlines()


def test_a_row_that_cannot_be_read_does_not_end_it(say, adapter, monkeypatch):
    from loraxs_search.predictor import Predictor

    answer = Predictor.__call__

    def failing(self: Predictor, texts: list[tuple[str]], **options: object):
        if texts == [("bad",)]:
            raise TaskDataError("It cannot be read.")
        return answer(self, texts, **options)

    monkeypatch.setattr(Predictor, "__call__", failing)
    monkeypatch.setattr("sys.stdin", io.StringIO("fine film\nbad\nso so\n"))
    said = say("predict", str(adapter), "--repl", "--format", "jsonl")
    assert [json.loads(line)["text"] for line in said.ok.splitlines()] == ["fine film", "so so"]
    assert "error: It cannot be read." in said.err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\nfine film\n"), encoding="utf-8"))
    said = say("predict", str(adapter), "--repl", "--format", "jsonl")
    assert [json.loads(line)["text"] for line in said.ok.splitlines()] == ["fine film"]
    assert "must be given valid Unicode, but got 'caf" in said.err


# ---- Python ----------------------------------------------------------------------------------------------------------
def test_a_loaded_adapter_answers_again_and_again(adapter):
    classify = loraxs_search.load(adapter)
    assert classify(TEXTS) == loraxs_search.predict(adapter, TEXTS) == classify(TEXTS)
    assert classify("so so") == classify(["so so"])
    table = pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS})
    assert classify(table) == loraxs_search.predict(adapter, table) == classify(TEXTS)
    assert classify(table[:0]) == []
    with pytest.raises(UsageError, match="must have the column text"):
        loraxs_search.predict(adapter, table[["id"]])
    assert (classify.columns, classify.labels) == (("text",), ("label 0", "label 1"))
    assert repr(classify).startswith("<Predictor task-2: lora-xs on ")
    for bad in (3, None, {"text": "so"}):
        with pytest.raises(UsageError, match="must be a text or a list of texts"):
            classify(bad)  # type: ignore[arg-type]


def test_rows_may_be_dicts_by_column_and_none_is_empty(adapter, writer):
    gaps = ["so so", float("nan"), None, " ", "fine"]
    with pytest.raises(TaskDataError):
        loraxs_search.predict(adapter, gaps)
    rows = [{"second": "w2 w3", "first": "w1", "n": 3}]
    assert loraxs_search.predict(writer, rows) == loraxs_search.predict(writer, [("w1", "w2 w3")])
    with pytest.raises(UsageError, match="column second"):
        loraxs_search.predict(writer, [{"first": "w1"}])


def test_the_package_lists_its_public_names():
    assert dir(loraxs_search) == sorted(loraxs_search.__all__)
    assert {"load", "launch", "Predictor"} <= set(dir(loraxs_search))
    assert not {"Any", "annotations", "importlib"} & set(dir(loraxs_search))
    for name in dir(loraxs_search):
        assert getattr(loraxs_search, name) is not None


# ---- trials before promotion -----------------------------------------------------------------------------------------
def test_a_trial_is_tried_before_promotion(ask, searched):
    study = "reviews"
    trials = json.loads(ask("status", study, "--json").ok)["trials"]
    complete = next(trial["trial_id"] for trial in trials if trial["state"] == "COMPLETE")
    (answer,) = loraxs_search.load(f"{study}/{complete}")("a fine film")
    printed = json.loads(ask("predict", f"{study}/{complete}", "a fine film", "--json").ok)
    assert printed[0]["label"] == answer.label
    said = ask("predict", f"{study}/99999", "a fine film")
    assert said.is_error(
        1, f"`{study}/TRIAL` must be one of: ", "but got '99999'", "keeps the adapters of its best trials"
    )
    for none in ("", f"../adapters/{complete}"):
        with pytest.raises(StudyError, match=rf"^`{study}/TRIAL` must be one of: [\d., ]+, but got '{none}'"):
            loraxs_search.load(f"{study}/{none}")
    assert ask("predict", "reviewz/0", "so").is_error(1, "Did you mean reviews? `study` must be one of", "./reviewz/0")
    assert ask("predict", study, "so").is_error(1, f"{study} is a study: write {study}/TRIAL")
