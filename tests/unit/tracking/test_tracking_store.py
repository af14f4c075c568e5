from __future__ import annotations

import os
from pathlib import Path

import pytest

from loraxs_search.errors import HomeError
from loraxs_search.log.events import TrialStarted
from loraxs_search.log.study_log import StudyLog
from loraxs_search.tracking.store import connect, ensure_store, has_waiting, read_offset, study_id


def test_a_home_that_is_no_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="must be writable"):
        ensure_store(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}")


def test_the_environment_of_the_user_stays(store_uri, fresh_home, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    connect(store_uri)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    before = (fresh_home / "mlflow.db").stat().st_mtime_ns
    ensure_store(store_uri)
    assert (fresh_home / "mlflow.db").stat().st_mtime_ns == before, "an existing store is left alone"
    assert not list(Path.cwd().iterdir())


def test_an_offset_at_which_no_line_begins_is_the_beginning(tmp_path):
    """As after a power cut: the offset was on the device, and of the last lines a part."""
    (tmp_path / "journal.jsonl").write_text("1234\n")
    for written, offset in (("5", 5), ("garbage", 0), ("-3", 0), ("3", 0), ("999999", 0)):
        (tmp_path / "mlflow.offset").write_text(written)
        assert read_offset(tmp_path) == offset


def test_a_line_torn_by_a_kill_is_waited_for_by_nobody(tmp_path):
    journal = StudyLog(tmp_path / "journal.jsonl")
    journal.append(TrialStarted(trial_id="t0", params={}))
    assert not has_waiting(tmp_path), "no run is of this study yet"
    assert study_id(tmp_path) == study_id(tmp_path)
    assert has_waiting(tmp_path)
    (tmp_path / "mlflow.offset").write_text(str((tmp_path / "journal.jsonl").stat().st_size))
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"event": "star')
    assert not has_waiting(tmp_path)
