"""Commands wait in the study folder, whole or not at all, and the journal knows each by its id."""

from __future__ import annotations

import pytest

from loraxs_search.errors import StudyError
from loraxs_search.home import remove_whole, write_atomic
from loraxs_search.log.events import Answered, Commanded
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.search import Command
from loraxs_search.studies.folder import CommandInbox

STOP = Command("c1", "stop", ("00001",), {"now": True}, {"rank": 8}, "ann", 2.0)
TYPED = Command("c2", "finish", issued_at=1.0)


def test_commands_wait_oldest_first_until_they_are_removed(tmp_path):
    inbox = CommandInbox(tmp_path / "commands")
    assert list(inbox.waiting()) == []
    for command in (TYPED, STOP):
        inbox.put(command)
    assert list(inbox.waiting()) == [TYPED, STOP]
    for _ in range(2):
        inbox.remove("c2")
    late = Command("c3", "stop", issued_at=0.5)  # the clock was set back
    inbox.put(late)
    assert [command.command_id for command in inbox.waiting()] == ["c1", "c3"]


def test_a_command_for_a_study_that_is_removed_meanwhile_brings_nothing_of_it_back(tmp_path):
    study = tmp_path / "gone"
    study.mkdir()
    inbox = CommandInbox(study / "commands")
    inbox.put(TYPED)
    remove_whole(study)
    with pytest.raises(StudyError, match="gone"):
        inbox.put(STOP)
    assert not study.exists()


@pytest.mark.parametrize("content", ["{", '{"command_id": "other", "verb": "stop"}'])
def test_what_is_no_command_is_set_aside_and_what_cannot_be_read_stops_no_other(content, tmp_path, caplog):
    inbox = CommandInbox(tmp_path)
    inbox.put(STOP)
    write_atomic(tmp_path / "bad.json", content)
    write_atomic(tmp_path / ".half.json.tmp", content)  # of a sender that was killed
    (tmp_path / f"{'b' * 32}.json").mkdir()  # as unreadable as a file of somebody who lets nobody else read it
    assert list(inbox.waiting()) == [STOP]
    assert (tmp_path / "bad.json").exists(), "who only looks renames nothing"
    for _ in range(2):
        assert list(inbox.waiting(set_aside=True)) == [STOP]
    assert (caplog.text.count("is no command"), caplog.text.count("cannot be read")) == (1, 1)


def test_the_journal_keeps_commands_in_the_order_they_were_taken(tmp_path):
    journal = StudyLog(tmp_path / "journal.jsonl")
    taken = [journal.append(Commanded(command=command)) for command in (STOP, TYPED, STOP)]
    assert [event is not None for event in taken] == [True, True, False]
    answer = Answered(command_id="c2", state="done", text="so", facts={"trials": "00001"})
    assert journal.append(answer)
    assert not journal.append(Answered(command_id="c2", state="refused", text="something else"))
    again = StudyLog(tmp_path / "journal.jsonl")
    assert list(again.commands) == ["c1", "c2"]
    assert (again.commands, again.answers) == ({"c1": STOP, "c2": TYPED}, {"c2": answer})
    assert (tmp_path / "journal.jsonl").read_text().count("\n") == 3
