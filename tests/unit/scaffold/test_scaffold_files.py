"""What `init` reads beside the rows: a test file, rows in a frame; what it says of repeated texts and of time."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import yaml
from support.rows import csv_of, texts

from loraxs_search.errors import TaskDataError
from loraxs_search.scaffold.draft import DraftedSpace


def files(space: DraftedSpace) -> dict[str, str]:
    return yaml.safe_load(space.text)["task"]["data"]["data_files"]


# ---- a test file -----------------------------------------------------------------------------------------------------
def test_a_test_file_beside_train_is_taken_and_said(drafted):
    rows = [{"text": text, "label": "neg", "more": 1} for text in texts(30)]
    Path("test.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    Path("dev.csv").write_text(csv_of(20))
    Path("valid").mkdir()
    Path("val.py").touch()
    space = drafted("train.csv", csv_of(200))
    assert not space.warnings
    assert files(space) == {"train": "train.csv", "validation": "dev.csv", "test": "test.jsonl.gz"}
    assert "test.jsonl.gz" in space.guesses["test"] and "dev.csv" in space.guesses["validation"]
    assert "tenth" not in space.text
    assert space.task.name == "rows", "rows called train have the name of their folder"
    assert files(drafted("other.csv", csv_of(200))) == {"train": "other.csv"}
    Path("test.jsonl.gz").unlink()
    Path("test.csv").write_text("text\n" + "\n".join(texts(20)))
    space = drafted("train.csv", csv_of(200))
    assert files(space) == {"train": "train.csv", "validation": "dev.csv"}
    assert any("test.csv" in warning and "label" in warning for warning in space.warnings)


def test_a_test_file_is_named(drafted):
    Path("held.csv").write_text(csv_of(20))
    assert files(drafted("rows.csv", csv_of(200), test="held.csv")) == {"train": "rows.csv", "test": "held.csv"}
    Path("held.csv").write_text(csv_of(20, labels=("neg", "other")))
    with pytest.raises(TaskDataError, match=r"'other' \(line 3"):
        drafted("rows.csv", csv_of(200), test="held.csv")
    Path("held.csv").write_text(csv_of(20, header="text,verdict"))
    with pytest.raises(TaskDataError, match=r"held\.csv must have the columns text, label"):
        drafted("rows.csv", csv_of(200), test="held.csv")


# ---- repeated texts --------------------------------------------------------------------------------------------------
def test_a_text_with_different_labels_is_said_with_its_lines(drafted):
    draft = drafted("rows.csv", csv_of(200) + "late again,neg\nfine,pos\nlate again,pos\nfine,pos\n")
    (warning,) = [warning for warning in draft.warnings if "different labels" in warning]
    assert "line 202 (neg)" in warning and "line 204 (pos)" in warning


# ---- the budget ------------------------------------------------------------------------------------------------------
def test_without_a_gpu_the_budget_is_minutes(drafted, in_warm_home, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    rows = "text,label\n" + "".join(f"{' '.join(['word'] * 100)} {i},{'ab'[i % 2]}\n" for i in range(5000))
    for has_gpu in (True, False):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_gpu=has_gpu: has_gpu)
        space = yaml.safe_load(drafted("rows.csv", rows, base=None).text)
        search, seeds = space["search"], space["promotion"]["seeds"]
        if has_gpu:
            assert (search["max_steps"], search["trials"], seeds, "time_budget" in search) == (752, 12, 2, False)
    assert (search["time_budget"], seeds) == ("10m", 0)
    assert 16 <= search["max_steps"] < 752
