"""Removing a study: never what somebody works on, never unrecorded, whole or not at all."""

from __future__ import annotations

import json
import threading

import pytest
from support.searched_studies import Tried, searched
from support.studies import mirrored_study, study
from support.tracked import Tracked

import loraxs_search
from loraxs_search.errors import StorageError, StudyError
from loraxs_search.home import file_lock, remove_whole
from loraxs_search.housekeeping import remove_study
from loraxs_search.records.search import SearchPlan
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.study_status import study_summaries
from loraxs_search.studies.folder import StudyFolder, list_studies
from loraxs_search.studies.lease import Lease
from loraxs_search.studies.storage import Storage
from loraxs_search.tracking.store import connect

AT_WORK = "watch it with `loraxs-search status reviews`"


def recorded(folder: StudyFolder, uri: str) -> None:
    """Have MLflow know the study and one of its trials."""
    with Tracked(folder.name, folder.path, uri, "t") as tracker:
        tracker.search_started("task: t", SearchPlan())
        tracker.trial_started("00000", {"rank": 4})
        tracker.trial_finished("00000", TrialState.COMPLETE)
        tracker.search_finished("FINISHED")
        assert not tracker.drain()


def runs(uri: str) -> int:
    client = connect(uri)
    experiment = client.get_experiment_by_name("t")
    return 0 if experiment is None else len(client.search_runs([experiment.experiment_id]))


def test_a_study_goes_and_mlflow_keeps_its_runs_unless_they_are_to_go(store_uri):
    folder, other = searched("reviews", [Tried({"rank": 2}, 0.8)]), study("other", store_uri)
    for it in (folder, other):
        recorded(it, store_uri)
    dry = remove_study("reviews", dry_run=True)
    assert folder.path.is_dir()
    assert remove_study("reviews") == dry
    assert dry.num_bytes > 1000
    assert list_studies() == [other.name]
    assert runs(store_uri) == 4
    with pytest.raises(StudyError) as unknown:
        remove_study("reviews")
    assert "loraxs-search status" in str(unknown.value.hint)
    assert remove_study("other", runs=True, dry_run=True).num_runs == 2
    assert runs(store_uri) == 4
    assert remove_study("other", runs=True).num_runs == 2
    assert runs(store_uri) == 2
    study("reviews")


def test_the_run_of_a_registered_version_stays(store_uri):
    folder = study("reviews", store_uri)
    recorded(folder, store_uri)
    client = connect(store_uri)
    experiment = client.get_experiment_by_name("t").experiment_id
    (trial,) = client.search_runs([experiment], "tags.trial_id = '00000'")
    client.create_registered_model("t")
    client.create_model_version("t", "file:/nowhere", run_id=trial.info.run_id)
    removed = remove_study("reviews", runs=True)
    assert (removed.num_runs, removed.kept_runs) == (0, ("t:1",))
    assert runs(store_uri) == 2, "its own, and that of its search, below which it stands"


def test_one_whose_records_wait_is_refused(store_uri):
    folder = study("reviews", "http://127.0.0.1:9")
    tracker = Tracked("reviews", folder.path, "http://127.0.0.1:9", "t")
    tracker.search_started("task: t", SearchPlan())
    tracker.close(0.0)
    with pytest.raises(StudyError) as refused:
        remove_study("reviews")
    assert "loraxs-search sync reviews" in refused.value.hint
    assert folder.path.is_dir()
    remove_study("reviews", force=True)
    assert not folder.path.exists()


def test_one_that_another_machine_works_on_is_refused(store_uri, fresh_home, tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    folder = mirrored_study(fresh_home, storage)
    with monkeypatch.context() as patch:
        patch.setenv("LORAXS_HOME", str(tmp_path / "another"))
        lease = Lease(storage, folder.name)
        lease.take()
    beating = threading.Event()

    def beat() -> None:
        while not beating.wait(0.2):
            lease.renew()

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(StudyError) as refused:
            remove_study(folder.name)
        assert "taken over" in str(refused.value.hint)
    finally:
        beating.set()
        heart.join()
    assert folder.path.is_dir()
    lease.release()
    assert remove_study(folder.name).storage == storage.uri


def test_drivers_elsewhere_are_kept_out_until_it_is_gone(store_uri, fresh_home, tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    folder = mirrored_study(fresh_home, storage)

    def is_let_go() -> bool:
        return bool(json.loads(storage.get(storage.keys("s/lease")[-1]) or b"")["released"])

    def removed(path):
        assert not is_let_go()
        remove_whole(path)
        assert not is_let_go()

    monkeypatch.setattr("loraxs_search.housekeeping.remove_whole", removed)
    remove_study(folder.name)
    assert is_let_go()
    assert not folder.path.exists()


def test_a_study_whose_storage_is_gone_goes_on_request_and_says_what_stays(store_uri, fresh_home, tmp_path):
    """As after a bucket was deleted, or its credentials were lost."""
    (share := tmp_path / "share").mkdir()
    folder = mirrored_study(fresh_home, Storage(str(share)))
    share.rename(tmp_path / "unmounted")
    with pytest.raises(StorageError) as refused:
        remove_study(folder.name)
    assert "--force" in str(refused.value.hint)
    assert folder.path.is_dir()
    removed = remove_study(folder.name, force=True)
    assert (removed.storage, removed.unasked) == (str(share), refused.value.message)
    assert not folder.path.exists()


@pytest.mark.parametrize("content", [None, "{"])
def test_a_study_that_cannot_be_read_is_listed_and_goes_on_request(content, store_uri):
    """Without study.json: it was removed while another command wrote into it, or a fetch was cut short."""
    folder, other = study("reviews"), study("other")
    (folder.path / "study.json").unlink() if content is None else (folder.path / "study.json").write_text(content)
    (summary,) = (it for it in study_summaries() if it.problem)
    assert summary.study == "reviews"
    with pytest.raises(StudyError):
        remove_study("reviews")
    with file_lock(folder.path / "study.lock"), pytest.raises(StudyError):
        remove_study("reviews", force=True)
    assert remove_study("reviews", force=True, dry_run=True).unread
    assert folder.path.is_dir()
    assert remove_study("reviews", force=True).unread
    assert not folder.path.exists()
    assert [it.study for it in study_summaries()] == [other.name]
    study("reviews")


def test_force_removes_nothing_that_is_no_study(store_uri, fresh_home):
    study("reviews")
    for name in ("..", ".", "", "nothing"):
        with pytest.raises(StudyError):
            remove_study(name, force=True)
    assert list_studies() == ["reviews"]


def test_a_link_is_refused(store_uri, fresh_home, tmp_path):
    folder = study("reviews", store_uri)
    folder.path.rename(tmp_path / "elsewhere")
    folder.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StudyError) as refused:
        remove_study("reviews")
    assert refused.value.hint == "remove it by hand"
    assert (tmp_path / "elsewhere" / "study.json").is_file()


def test_a_study_that_promote_decides_about_is_neither_removed_nor_taken_up(store_uri, monkeypatch):
    """`promote` writes into the study: half of it would come back."""
    folder = searched("reviews", [Tried({"rank": 2}, 0.8)])
    refused = []

    def decide(*_, **__):
        for use in (lambda: remove_study("reviews"), lambda: folder.lock().__enter__()):
            with pytest.raises(StudyError) as busy:
                use()
            refused.append(busy.value.hint)
        raise StudyError("decided")

    monkeypatch.setattr("loraxs_search.registry.changes.Promoter.promote", decide)
    with pytest.raises(StudyError, match="decided"):
        loraxs_search.promote("reviews")
    assert refused == [AT_WORK] * 2
    with folder.lock(), pytest.raises(StudyError) as busy:
        loraxs_search.promote("reviews")
    assert busy.value.hint == AT_WORK
