"""`loraxs_search.init` of files and of data frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.rows import csv_of, texts

import loraxs_search
from loraxs_search.errors import TaskDataError, UsageError
from loraxs_search.tasks.prepared import load_data

PLAIN = csv_of()


def frame(rows: int = 60, **changes: Any) -> Any:
    import pandas as pd

    numbers = [1 / (i + 3) for i in range(rows)]
    return pd.DataFrame({"review": texts(rows), "verdict": ["good", "bad"] * (rows // 2), "number": numbers, **changes})


def test_python_makes_a_space_of_a_frame(fresh_home):
    space = loraxs_search.init(frame(), text="review", label="verdict", name="films")
    assert (space.task.name, space.task.text, space.task.labels) == ("films", "review", ("bad", "good"))
    data = load_data(space.task)
    assert sum(map(len, data.values())) == 60
    assert fresh_home in Path(space.source).parents
    assert "verdict: bad (30), good (30)" in str(space)
    again = loraxs_search.init(frame(), text="review", label="verdict", name="films")
    assert again == space, "the same rows and choices are the same space"
    with pytest.raises(UsageError, match="`out` must not exist"):
        loraxs_search.init(frame(), name="films", out=space.source)
    numbers = loraxs_search.init(frame(), text="review", label="number", name="numbers")
    assert numbers.task.kind == "regression"
    (_, *_, last) = sorted(np.concatenate([rows.labels for rows in load_data(numbers.task).values()]))
    assert last == np.float32(1 / 3)


def test_a_frame_with_faults_is_refused_or_cleaned(fresh_home):
    gaps = frame(verdict=[None, float("nan"), *(["good", "bad"] * 29)], day="2024-05-01")
    gaps.index = range(100, 160)
    with pytest.raises(TaskDataError, match="row 100, row 101 has none") as caught:
        loraxs_search.init(gaps, text="review", label="verdict", name="films")
    assert "drop_empty=True" in str(caught.value.hint)
    assert "jsonl" not in f"{caught.value} {caught.value.hint}" and "--" not in f"{caught.value} {caught.value.hint}"
    space = loraxs_search.init(gaps, label="verdict", name="films", drop_empty=True)
    assert space.task.labels == ("bad", "good")
    assert sum(map(len, load_data(space.task).values())) == 58
    assert "2 rows without text or answer left out" in str(space)
    with pytest.raises(UsageError, match="name"):
        loraxs_search.init(gaps, label="verdict")
    with pytest.raises(UsageError, match="DataFrame"):
        loraxs_search.init([{"text": "a"}], name="films")


def test_a_frame_keeps_every_digit_and_takes_numbers_as_labels(fresh_home):
    tiny = [1.23456789e-13 * (i + 1) for i in range(60)]
    space = loraxs_search.init(frame(number=tiny), text="review", label="number", name="tiny")
    labels = np.concatenate([rows.labels for rows in load_data(space.task).values()])
    assert sorted(labels) == sorted(np.float32(tiny))
    space = loraxs_search.init(frame(verdict=[0, 1] * 30), text="review", label="verdict", labels=[1, 0], name="ids")
    assert space.task.labels == ("1", "0")


def test_a_frame_that_cannot_be_written_is_refused(fresh_home):
    import pandas as pd

    twice = frame()
    twice.columns = ["review", "verdict", "verdict"]
    for rows in (twice, frame(review=pd.Series(["\ud800 so"] * 60, dtype=object))):
        with pytest.raises(UsageError):
            loraxs_search.init(rows, text="review", label="verdict", name="films")


def test_python_reads_a_file_that_has_changed_and_another_of_its_name(rows_folder, monkeypatch):
    def drafted_from(content: str) -> Any:
        Path("rows.csv").write_text(content)
        return loraxs_search.init("rows.csv", drop_empty=True)

    first = drafted_from(PLAIN + ",neg\n")
    corrected = drafted_from(PLAIN + "so,neg\n,pos\n")
    (rows_folder / "other").mkdir()
    monkeypatch.chdir(rows_folder / "other")
    elsewhere = drafted_from(PLAIN + ",neg\n")
    counts = [sum(map(len, load_data(space.task).values())) for space in (first, corrected, elsewhere)]
    assert counts == [60, 61, 60]
    assert len({space.source for space in (first, corrected, elsewhere)}) == 3
