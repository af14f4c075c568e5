"""What a task's study waits for is told from its files."""

from __future__ import annotations

from support.studies import TASK, study

from loraxs_search.records import Candidate
from loraxs_search.studies import next_step_of_task

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
