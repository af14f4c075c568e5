"""What a disk or a hand has damaged is told with its place, and hides no other study."""

from __future__ import annotations

import json
import shutil

import pytest
from support.studies import study

from loraxs_search.errors import StudyError
from loraxs_search.home import remove_whole
from loraxs_search.log.events import TrialStarted
from loraxs_search.log.study_log import StudyLog
from loraxs_search.reports.study_status import study_summaries
from loraxs_search.search.driver.launch import resume
from loraxs_search.search.driver.result import sync
from loraxs_search.studies.folder import StudyFolder, list_studies, studies_root
from loraxs_search.studies.info import STUDY_FORMAT
from loraxs_search.studies.mirror import fetch
from loraxs_search.studies.storage import Storage

ENDED = b'{"event": "TrialEnded", "trial_id": "00009", "state": "FAIL", "reason": "", "at": 0}\n'


@pytest.mark.parametrize("line", [b"null\n", ENDED, b"\xff\n", b'{"event": ["Warned"], "at": 1.0}\n'])
def test_a_whole_line_that_is_no_event_is_an_error_that_names_the_place(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    StudyLog(path).append(TrialStarted(trial_id="00000", params={"rank": 8}))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(StudyError, match=f"journal.jsonl is damaged at byte {size}") as caught:
        StudyLog(path)
    assert "backup" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "content", "use"),
    [
        ("study.json", b'{"name": "s', lambda folder: StudyFolder.open(folder.name)),
        ("space.yaml", None, lambda folder: resume(folder.name)),
        ("space.yaml", b"\xff", lambda folder: resume(folder.name)),
        ("confirmed/00000.refit.json", b"{", lambda folder: folder.confirmed.refit("00000").read()),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(name, content, use):
    folder = study("s")
    file = folder.path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content) if content is not None else file.unlink()
    with pytest.raises(StudyError, match=f"must be whole, but .*/s/{name}: ") as caught:
        use(folder)
    assert "backup" in str(caught.value.hint)


def test_a_damaged_study_hides_no_other(store_uri, say):
    for name in ("bad", "worse", "theirs", "good"):
        study(name, store_uri)
    (studies_root() / "bad" / "study.json").write_text("{")
    (studies_root() / "worse" / "journal.jsonl").write_text("garbage\n")
    theirs = studies_root() / "theirs" / "journal.jsonl"
    theirs.mkdir()  # root may read every file, but no folder as one
    shutil.copytree(studies_root() / "good", studies_root() / "good (copy)")  # as file managers name one
    said = say("status")
    states = {row.split()[0]: row.split()[2] for row in said.ok.splitlines()[1:]}
    assert states == dict.fromkeys(("bad", "worse", "theirs"), "unreadable") | {"good": "interrupted"}
    assert "bad/study.json" in said.err
    assert "worse/journal.jsonl is damaged at byte 0" in said.err
    assert say("status", "theirs").is_error(1, f"{theirs} must be readable, but the system says: ", "owner")
    assert {done.study: done.state for done in sync()} == {
        **dict.fromkeys(("bad", "worse", "theirs"), "unreadable"),
        "good": "complete",
    }
    assert say("sync").code == 1


def test_a_folder_that_holds_a_study_of_another_name_is_refused(store_uri, say, tmp_path):
    """`resume` would train a study in the folder that its name leads to."""
    shutil.copytree(study("first", store_uri).path, studies_root() / "second")
    for use in (StudyFolder.open, resume):
        with pytest.raises(StudyError, match="/second holds study 'first'") as refused:
            use("second")
        assert "rename it back to first" in str(refused.value.hint)
    assert {it.study: it.state for it in study_summaries()}["second"] == "unreadable"
    assert say("studies", "rm", "second", "--force").code == 0
    assert list_studies() == ["first"]
    copy = (studies_root() / "first").rename(tmp_path / "third")
    with pytest.raises(StudyError, match=f"{copy} holds study 'first'"):
        fetch("third", Storage(str(tmp_path)))
    assert list_studies() == []


def test_a_study_of_another_format_is_refused_and_so_is_its_copy(fresh_home, tmp_path):
    folder, storage = study("s"), Storage(str(tmp_path))
    info = json.loads((folder.path / "study.json").read_text())
    other = json.dumps(info | {"format": STUDY_FORMAT + 1, "task": "by what it does not know"})
    (folder.path / "study.json").write_text(other)
    storage.create("s/study.json", other.encode())
    with pytest.raises(StudyError, match="`format`") as refused:
        StudyFolder.open("s")
    assert "launch its space again" in str(refused.value.hint)
    remove_whole(folder.path)
    with pytest.raises(StudyError, match="`format`"):
        fetch("s", storage)
    assert list_studies() == []
