"""A search leaves a report in its folder and in MLflow, once; one that cannot be made stops nothing."""

from __future__ import annotations

import pytest
from support.searched_studies import Tried, searched
from support.tracked import Tracked

from loraxs_search.reports.html import page
from loraxs_search.search.driver.finished import close_finished
from loraxs_search.search.driver.kept_report import keep_report
from loraxs_search.studies import StudyFolder
from loraxs_search.tracking.store import connect


@pytest.fixture
def finished(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    """A search that ended, whose driver was killed before it could say so; its folder is at its store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    folder = searched("s", [Tried({"rank": 4}, 0.8), Tried({"rank": 8}, 0.7)])
    with Tracked("s", folder.path, store_uri, "t") as tracker:
        tracker.search_started("", folder.info.search)
    object.__setattr__(folder.info, "tracking_uri", store_uri)
    return folder


def kept(uri: str) -> list[str]:
    client = connect(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("t").experiment_id], "tags.`loraxs.kind` = 'search'")
    return [artifact.path for artifact in client.list_artifacts(run.info.run_id)]


def test_a_finished_search_gets_its_report_once(finished: StudyFolder, store_uri: str) -> None:
    close_finished(finished)
    path = finished.path / "report.html"
    assert "The best so far" in path.read_text()
    assert kept(store_uri) == ["report.html", "space.yaml"]
    log = finished.journal_path.read_bytes()
    path.write_text("as it was")
    close_finished(finished)
    assert path.read_text() == "as it was"
    assert finished.journal_path.read_bytes() == log


def test_a_report_that_is_not_in_the_folder_is_written_again(finished: StudyFolder, store_uri: str) -> None:
    close_finished(finished)
    (finished.path / "report.html").unlink()  # as on another machine: a storage keeps no copy of it
    close_finished(finished)
    assert (finished.path / "report.html").is_file()
    assert kept(store_uri) == ["report.html", "space.yaml"]


def test_while_its_driver_holds_it_a_finished_search_is_not_running(finished: StudyFolder, store_uri: str) -> None:
    with finished.lock(), Tracked("s", finished.path, store_uri, "t") as tracked:
        keep_report(finished, tracked.journal, tracked.tracker)
    assert 'class="state finished"' in (finished.path / "report.html").read_text()


def test_a_report_that_cannot_be_made_stops_nothing(
    finished: StudyFolder, store_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(facts: object) -> str:
        raise ZeroDivisionError("no pen")

    monkeypatch.setattr(page, "report_page", broken)
    assert close_finished(finished).study == "s"
    assert "no report was written (no pen); try `loraxs-search report s`" in caplog.text
    assert kept(store_uri) == ["space.yaml"]
