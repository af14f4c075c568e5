"""What a task's study waits for is told from its files."""

from __future__ import annotations

import pytest
from support.studies import TASK, study

from loraxs_search.errors import TrackingError
from loraxs_search.records.promotion import Candidate
from loraxs_search.studies.folder import next_step_of_task, store_of

URI = "sqlite:///mlflow.db"


def test_a_study_is_resumed_watched_or_promoted():
    folder = study("mine", URI)
    assert next_step_of_task(TASK.name, URI) == "continue with `loraxs-search resume mine`"
    with folder.lock():
        assert "`loraxs-search status mine`" in next_step_of_task(TASK.name, URI)
    folder.write_candidates([Candidate("mine", "0", TASK.name, {}, {}, 100, "data", "base")])
    assert "`loraxs-search promote mine`" in next_step_of_task(TASK.name, URI)


def test_only_studies_of_this_task_in_this_registry_count_and_a_damaged_one_hides_none():
    study("elsewhere", "http://mlflow.example:5000")
    assert next_step_of_task(TASK.name, URI) is None
    study("mine", URI)
    assert next_step_of_task("another", URI) is None
    (study("damaged", URI).path / "study.json").write_text("{cut sho")
    assert "resume mine" in next_step_of_task(TASK.name, URI)


def test_the_store_of_a_study_must_be_there_unless_a_search_may_make_it(fresh_home, tmp_path, monkeypatch):
    """A study that was fetched from a storage records in this home's own, which may not be made yet."""
    own, gone = f"sqlite:///{fresh_home}/mlflow.db", f"sqlite:///{tmp_path}/gone.db"
    assert store_of(study("fetched", own)) == own
    assert store_of(study("served", "http://mlflow.example:5000")) == "http://mlflow.example:5000"
    lost = study("lost", gone)
    with pytest.raises(TrackingError, match=r"study 'lost' .* must be there, but .*/gone\.db is not") as refused:
        store_of(lost)
    assert refused.value.hint == "bring the file back", "its folder is there: no link can lead to another"
    assert not (fresh_home / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gone)
    assert store_of(lost) == gone, "the user names it"
