"""What `init` reads beside the rows: a test file, names of columns, an older space; what it says of repeated texts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.rows import csv_of, texts

import loraxs_search
from loraxs_search.errors import TaskDataError, UsageError
from loraxs_search.scaffold.draft import Draft, draft_space, task_name
from loraxs_search.scaffold.roles import Choices
from loraxs_search.search_space.load import load_space
from loraxs_search.tasks.prepared import load_data

NO_BASE = "no-such-org/no-such-base"


@pytest.fixture
def folder(fresh_home, tmp_path):
    (tmp_path / "tickets").mkdir()
    return tmp_path / "tickets"


def drafted(path: Path, content: str = "", **choices: Any) -> Draft:
    path.write_text(content or csv_of(200))
    return draft_space(path, path.parent / "space.yaml", Choices(base=NO_BASE, **choices))


def files(draft: Draft) -> dict[str, str]:
    return yaml.safe_load(draft.text)["task"]["data"]["data_files"]


# ---- a test file -----------------------------------------------------------------------------------------------------
def test_a_test_file_beside_train_is_taken_and_said(folder):
    rows = [{"text": text, "label": "neg", "more": 1} for text in texts(30)]
    (folder / "test.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (folder / "dev.csv").write_text(csv_of(20))
    (folder / "dev.json").write_text("[]")  # not the format of train
    (folder / "valid").mkdir()
    (folder / "val.py").touch()
    draft = drafted(folder / "train.csv")
    assert not draft.warnings
    assert files(draft) == {"train": "train.csv", "validation": "dev.csv", "test": "test.jsonl.gz"}
    assert "test.jsonl.gz" in draft.guesses["test"] and "dev.csv" in draft.guesses["validation"]
    assert "tenth" not in draft.text
    assert files(drafted(folder / "other.csv")) == {"train": "other.csv"}


def test_a_test_file_without_answers_is_not_taken_and_said(folder):
    (folder / "test.csv").write_text("text\n" + "\n".join(texts(20)))
    draft = drafted(folder / "train.csv")
    assert files(draft) == {"train": "train.csv"}
    assert any("test.csv" in warning and "label" in warning for warning in draft.warnings)


def test_a_test_file_is_named(folder):
    (folder / "held.csv").write_text(csv_of(20))
    draft = drafted(folder / "rows.csv", test=str(folder / "held.csv"))
    assert files(draft) == {"train": "rows.csv", "test": "held.csv"}
    (folder / "held.csv").write_text(csv_of(20, labels=("neg", "other")))
    with pytest.raises(TaskDataError, match=r"'other' \(line 3"):
        drafted(folder / "rows.csv", test=str(folder / "held.csv"))
    (folder / "held.csv").write_text(csv_of(20, header="text,verdict"))
    with pytest.raises(TaskDataError, match=r"held\.csv must have the columns text, label"):
        drafted(folder / "rows.csv", test=str(folder / "held.csv"))
    with pytest.raises(UsageError, match="--test"):
        draft_space("no-such-org/no-such-set", folder / "space.yaml", Choices(test="held.csv"))


# ---- names -----------------------------------------------------------------------------------------------------------
def test_rows_called_train_have_the_name_of_their_folder(folder):
    assert task_name(folder / "Training.jsonl.gz", Choices()) == "tickets"
    assert task_name(folder / "spam.csv", Choices()) == "spam"


def test_columns_of_a_file_without_a_header_are_named(folder):
    content = csv_of(60).partition("\n")[2]
    draft = drafted(folder / "rows.csv", content, columns=("text", "label"))
    draft.save(folder / "space.yaml")
    rows = load_data(load_space(str(folder / "space.yaml")).task)
    assert sum(map(len, rows.values())) == 60
    with pytest.raises(TaskDataError, match="label, but line 61 has none"):
        drafted(folder / "rows.csv", content + "so,\n", columns=("text", "label"))
    with pytest.raises(UsageError, match="--columns"):
        drafted(folder / "rows.csv", content, columns=("text", "label", "more"))


# ---- repeated texts --------------------------------------------------------------------------------------------------
def test_a_text_with_different_labels_is_said_with_its_lines(folder):
    draft = drafted(folder / "rows.csv", csv_of(200) + "late again,neg\nfine,pos\nlate again,pos\nfine,pos\n")
    (warning,) = [warning for warning in draft.warnings if "different labels" in warning]
    assert "line 202 (neg)" in warning and "line 204 (pos)" in warning


# ---- the budget ------------------------------------------------------------------------------------------------------
def test_without_a_gpu_the_budget_is_minutes(folder, in_warm_home, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    rows = "text,label\n" + "".join(f"{' '.join(['word'] * 100)} {i},{'ab'[i % 2]}\n" for i in range(5000))
    (folder / "rows.csv").write_text(rows)
    for has_gpu in (True, False):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_gpu=has_gpu: has_gpu)
        space = yaml.safe_load(draft_space(folder / "rows.csv", folder / "space.yaml").text)
        search, seeds = space["search"], space["promotion"]["seeds"]
        if has_gpu:
            assert (search["max_steps"], search["trials"], seeds, "time_budget" in search) == (752, 12, 2, False)
    assert (search["time_budget"], seeds) == ("10m", 0)
    assert 16 <= search["max_steps"] < 752


# ---- Python ----------------------------------------------------------------------------------------------------------
def frame(**columns: Any) -> Any:
    import pandas as pd

    return pd.DataFrame({"review": texts(40), "verdict": ["good", "bad"] * 20, "day": "2024-05-01", **columns})


def test_rows_of_a_frame_are_named_by_their_index(fresh_home):
    import pandas as pd

    gaps = frame(verdict=[None, "good", *["bad", "good"] * 19]).set_index(pd.Index(range(100, 140)))
    with pytest.raises(TaskDataError, match="row 100 has none") as caught:
        loraxs_search.init(gaps, name="films", base=NO_BASE)
    assert "drop_empty=True" in str(caught.value.hint)
    assert "jsonl" not in f"{caught.value} {caught.value.hint}" and "--" not in f"{caught.value} {caught.value.hint}"
    space = loraxs_search.init(gaps, name="films", base=NO_BASE, drop_empty=True)
    assert "1 row without text or answer is left out" in str(space)
