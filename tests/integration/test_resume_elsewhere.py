"""A driver's machine is lost; another one goes on from the storage: S3, or a folder that both see."""

from __future__ import annotations

import pytest
from support.shell import finished, num_reports, start, until, wait_for

from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.storage import Storage
from loraxs_search.tracking.store import ensure_store

pytestmark = [pytest.mark.long(part="storage"), pytest.mark.timeout(400)]
PLAN = ("search.trials=10", "search.max_steps=400", "search.report_every=40", "search.scheduler=none")
SLOWER = tuple(word for change in PLAN for word in ("--set", change))


@pytest.fixture(params=["s3", "folder"])
def place(request, tmp_path):
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_bucket')}/studies"
    (tmp_path / "shared").mkdir()
    return str(tmp_path / "shared")


@pytest.mark.parametrize("alike", [False, True], ids=["elsewhere", "same-path"])
def test_another_machine_goes_on_where_the_lost_one_was(place, alike, tiny_space, tmp_path, monkeypatch, agree):
    first, second = tmp_path / "first", tmp_path / "second"
    storage = ("--storage", place)
    monkeypatch.setenv("LORAXS_HOME", str(first))
    with start(first, "launch", str(tiny_space), "--name", "moved", *storage, *SLOWER) as driver:
        wait_for(driver, lambda: num_reports("moved") >= 2)
        with start(second, "resume", "moved", *storage) as early:
            _, talk = early.communicate(timeout=60)
        assert early.returncode == 1
        assert "must have one driver at a time" in talk
        until(lambda: bool(Storage(place).keys("moved/snapshots")))
        driver.kill()
    before = StudyFolder.open("moved").journal().records
    assert StudyFolder.open("moved").candidates() is None, "it was in the middle"
    first.rename(tmp_path / "lost")
    if alike:  # a machine with an embedded store of its own, and all homes are called alike
        second = first
        ensure_store(resolve_uri())

    monkeypatch.setenv("LORAXS_HOME", str(second))
    out, talk = finished(second, "resume", "moved", *storage)
    assert "watching for 30 s whether it still does" in talk, "another state folder is another place"
    assert "COMPLETE" in out
    agree("moved", 10)
    after = StudyFolder.open("moved").journal().records
    assert {trial_id: after[trial_id].params for trial_id in before} == {k: r.params for k, r in before.items()}
    assert StudyFolder.open("moved").info.tracking_uri == f"sqlite:///{second}/mlflow.db"
    assert StudyFolder.open("moved").candidates()
