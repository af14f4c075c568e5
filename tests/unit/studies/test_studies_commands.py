"""Commands wait in the study folder, whole or not at all, and the journal knows each by its id."""

from __future__ import annotations

import pytest

from loraxs_search.errors import StudyError
from loraxs_search.home import remove_whole, write_atomic
from loraxs_search.log.events import Answered, Commanded, DriverStarted, Reopened, TrainingEnded
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.search import AnswerState, Command, CommandAnswer
from loraxs_search.studies.commands import CommandInbox

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
    assert list(inbox.waiting()) == [STOP]


def test_a_command_for_a_study_that_is_removed_meanwhile_brings_nothing_of_it_back(tmp_path):
    study = tmp_path / "gone"
    study.mkdir()
    inbox = CommandInbox(study / "commands")
    inbox.put(TYPED)
    remove_whole(study)
    with pytest.raises(StudyError, match="gone"):
        inbox.put(STOP)
    assert not study.exists()


def test_an_id_that_leads_elsewhere_removes_nothing(tmp_path):
    """An id may come from a tag of MLflow."""
    other = tmp_path / "snapshots" / "00001.json"
    other.parent.mkdir()
    other.write_text("another's")
    CommandInbox(tmp_path / "commands").remove("../snapshots/00001")
    assert other.read_text() == "another's"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"command_id": "other", "verb": "stop"}'])
def test_what_is_no_command_is_set_aside(content, tmp_path, caplog):
    inbox = CommandInbox(tmp_path)
    inbox.put(STOP)
    write_atomic(tmp_path / "bad.json", content)
    write_atomic(tmp_path / ".half.json.tmp", content)  # of a sender that was killed
    assert list(inbox.waiting()) == [STOP]
    assert (tmp_path / "bad.json").exists(), "who only looks renames nothing"
    for _ in range(2):
        assert list(inbox.waiting(set_aside=True)) == [STOP]
    assert caplog.text.count("is no command") == 1


def test_the_journal_keeps_commands_in_the_order_they_were_taken(tmp_path):
    journal = StudyLog(tmp_path / "journal.jsonl")
    taken = [journal.append(Commanded(command=command)) for command in (STOP, TYPED, STOP)]
    assert [event is not None for event in taken] == [True, True, False]
    answer = CommandAnswer("c2", AnswerState.DONE, "so", facts={"trials": "00001"})
    assert journal.append(Answered(answer=answer))
    assert not journal.append(Answered(answer=CommandAnswer("c2", AnswerState.REFUSED, "something else")))
    again = StudyLog(tmp_path / "journal.jsonl")
    assert list(again.commands) == ["c1", "c2"]
    assert (again.commands, again.answers) == ({"c1": STOP, "c2": TYPED}, {"c2": answer})
    assert (tmp_path / "journal.jsonl").read_text().count("\n") == 3


def test_a_file_that_cannot_be_read_stops_no_other_command(tmp_path, caplog):
    inbox, command = CommandInbox(tmp_path), Command("a" * 32, "finish", issued_at=1.0)
    inbox.put(command)
    (tmp_path / f"{'b' * 32}.json").mkdir()  # as unreadable as a file of somebody who lets nobody else read it
    for _ in range(2):
        assert [waiting.command_id for waiting in inbox.waiting(set_aside=True)] == [command.command_id]
    assert caplog.text.count("cannot be read") == 1


def test_commands_to_a_study_that_nobody_searches_are_no_work(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("loraxs_search.log.clock.steady_time", lambda: clock[0])
    journal = StudyLog(tmp_path / "journal.jsonl")
    journal.append(DriverStarted(since=1000.0))
    clock[0] = 1010.0
    journal.append(TrainingEnded(notice=""))
    clock[0] = 90_000.0  # the next day
    journal.append(Commanded(command=Command("a" * 32, "extend", arguments={"trials": 2})))
    journal.append(Answered(answer=CommandAnswer("a" * 32, AnswerState.DONE, "so")))
    journal.append(Reopened(number=1))
    assert journal.spent_s == StudyLog(tmp_path / "journal.jsonl").spent_s == 10.0


def test_commands_wait_in_the_order_they_came_whatever_the_folders_is(tmp_path):
    inbox = CommandInbox(tmp_path / "commands")
    for number in range(1, 17):
        inbox.put(Command(f"c{number * 7 % 16:02}", "finish", issued_at=float(number)))
    assert [command.issued_at for command in inbox.waiting()] == [float(number) for number in range(1, 17)]
