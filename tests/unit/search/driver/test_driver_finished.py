"""A finished study that is resumed is shown as it ended, and its records in MLflow stay as they are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.studies import study as new_study
from support.tracked import Tracked

from loraxs_search.records import SearchPlan, SearchRun, TrialState, to_json
from loraxs_search.reports.html.page import REPORT_FILE
from loraxs_search.search.driver.finished import close_finished
from loraxs_search.studies import StudyFolder
from loraxs_search.tracking.store import connect

NOTICE = "the time budget of 60 s is used up"
BEGAN, ENDED = 1_000_000.0, 1_000_075.0


@pytest.fixture
def finished(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    """A study that a driver worked on for 75 s, long ago; MLflow does not know of its end."""
    folder = new_study("s", store_uri)
    with monkeypatch.context() as patch:
        patch.setattr("loraxs_search.studies.journal.steady_time", lambda: ENDED)
        journal = folder.journal()
        journal.driver_started(BEGAN, SearchRun("", folder.info.search))
        journal.trial_started("00000", {"rank": 4})
        journal.trial_ended("00000", TrialState.PRUNED, NOTICE)
        journal.search_ended(NOTICE)
    folder.write_candidates([])
    return folder


def shown(uri: str) -> tuple[Any, ...]:
    """Return what the search's own run says of its end."""
    client = connect(uri)
    experiment = client.get_experiment_by_name("t")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`loraxs.kind` = 'search'")
    history = client.get_metric_history(run.info.run_id, "wall_s")
    return run.info.status, run.info.end_time, [m.value for m in history], run.data.tags.get("loraxs.notice")


def test_resuming_a_finished_study_leaves_its_run_as_it_is(finished: StudyFolder) -> None:
    uri = finished.info.tracking_uri
    with Tracked("s", finished.path, uri, "t") as tracker:
        tracker.search_finished("FINISHED", {"wall_s": 75.5, "notice": NOTICE})
    before = shown(uri)
    for _ in range(2):
        result = close_finished(finished)
        assert (result.wall_s, result.notice) == (75.0, NOTICE)
    assert shown(uri) == before


def test_an_end_that_a_killed_driver_did_not_record_is_recorded_as_it_was(finished: StudyFolder) -> None:
    close_finished(finished)
    assert shown(finished.info.tracking_uri) == ("FINISHED", ENDED * 1000, [75.0], NOTICE)


def test_an_end_that_an_older_version_recorded_is_not_recorded_again(store_uri: str) -> None:
    """It told MLflow in a file beside the log."""
    folder = new_study("s", store_uri)
    plan = json.loads(to_json(SearchPlan()))
    told: list[dict[str, Any]] = [
        {"event": "search_started", "at": BEGAN, "space_yaml": "", "plan": plan, "params": {}, "tags": {}},
        {"event": "report_written", "at": ENDED, "path": str(folder.path / REPORT_FILE)},
        {"event": "search_finished", "at": ENDED, "state": "FINISHED", "summary": {"wall_s": 75.5, "notice": NOTICE}},
    ]
    (folder.path / "tracking.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in told))
    (folder.path / REPORT_FILE).write_text("a report")
    folder.journal().driver_started(BEGAN)
    folder.journal().search_ended(NOTICE)
    folder.write_candidates([])
    before = folder.journal_path.read_bytes()
    close_finished(folder)
    assert folder.journal_path.read_bytes() == before
    assert shown(store_uri) == ("FINISHED", ENDED * 1000, [75.5], NOTICE)
