"""What a task's study waits for is told from its files."""

from __future__ import annotations

import pytest
from support.studies import TASK, study

import loraxs_search
from loraxs_search.errors import TrackingError, UnknownTaskError
from loraxs_search.records.search import Candidate


def hint(task: str, uri: str) -> str:
    """What the registry, which knows no such task, advises."""
    with pytest.raises(UnknownTaskError) as unknown:
        loraxs_search.pull(task, tracking_uri=uri)
    return str(unknown.value.hint)


def test_who_asks_for_a_task_is_told_what_its_study_waits_for(store_uri):
    """Studies of other tasks or registries do not count, and a damaged one hides none."""
    study("elsewhere", "http://mlflow.example:5000")
    assert "elsewhere" not in hint(TASK.name, store_uri)
    folder = study("mine", store_uri)
    (study("damaged", store_uri).path / "study.json").write_text("{cut sho")
    assert "mine" not in hint("another", store_uri)
    assert hint(TASK.name, store_uri) == "continue with `loraxs-search resume mine`"
    with folder.lock():
        assert "`loraxs-search status mine`" in hint(TASK.name, store_uri)
    folder.write_candidates([Candidate("mine", "0", TASK.name, {}, {}, 100, "data", "base")])
    assert "`loraxs-search promote mine`" in hint(TASK.name, store_uri)


def test_the_store_of_a_study_must_be_there_unless_a_search_may_make_it(fresh_home, tmp_path, monkeypatch):
    """A study that was fetched from a storage records in this home's own, which may not be made yet."""
    own, gone = f"sqlite:///{fresh_home}/mlflow.db", f"sqlite:///{tmp_path}/gone.db"
    assert study("fetched", own).store_uri() == own
    assert study("served", "http://mlflow.example:5000").store_uri() == "http://mlflow.example:5000"
    lost = study("lost", gone)
    with pytest.raises(TrackingError, match=r"study 'lost' .* must be there, but .*/gone\.db is not") as refused:
        lost.store_uri()
    assert refused.value.hint == "bring the file back", "its folder is there: no link can lead to another"
    assert not (fresh_home / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gone)
    assert lost.store_uri() == gone, "the user names it"
