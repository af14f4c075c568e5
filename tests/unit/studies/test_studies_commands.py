"""Commands wait in the study folder, whole or not at all, and the journal knows each by its id."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraxs_search.home import write_atomic
from loraxs_search.records import AnswerState, Command, CommandAnswer, CommandTag
from loraxs_search.studies import CommandInbox, Journal

STOP = Command("c1", "stop", ("00001",), {"now": True}, {"rank": 8}, "ann", 2.0)
TYPED = Command("c2", "pause", issued_at=1.0, tag=CommandTag("run", "loraxs.command", "pause"))


def test_commands_wait_oldest_first_until_they_are_removed(tmp_path: Path) -> None:
    inbox = CommandInbox(tmp_path / "commands")
    assert list(inbox.waiting()) == []
    for command in (STOP, TYPED):
        inbox.put(command)
    assert list(inbox.waiting()) == [TYPED, STOP]
    for _ in range(2):
        inbox.remove("c2")
    assert list(inbox.waiting()) == [STOP]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"command_id": "other", "verb": "stop"}'])
def test_what_is_no_command_is_set_aside(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inbox = CommandInbox(tmp_path)
    inbox.put(STOP)
    write_atomic(tmp_path / "bad.json", content)
    write_atomic(tmp_path / ".half.json.tmp", content)  # of a sender that was killed
    assert list(inbox.waiting()) == [STOP]
    assert (tmp_path / "bad.json").exists(), "who only looks renames nothing"
    for _ in range(2):
        assert list(inbox.waiting(set_aside=True)) == [STOP]
    assert caplog.text.count("is no command") == 1


def test_the_journal_keeps_commands_in_the_order_they_were_taken(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert [journal.commanded(command) for command in (STOP, TYPED, STOP)] == [True, True, False]
    answer = CommandAnswer("c2", AnswerState.DONE, "it pauses", facts={"trials": "00001"})
    assert journal.answered(answer)
    assert not journal.answered(CommandAnswer("c2", AnswerState.REFUSED, "something else"))
    journal.command_cleared("c2")
    journal.command_cleared("c2")
    again = Journal(tmp_path / "journal.jsonl")
    assert list(again.commands) == ["c1", "c2"]
    assert (again.commands["c1"].command, again.commands["c1"].answer) == (STOP, None)
    assert (again.commands["c2"].command, again.commands["c2"].answer) == (TYPED, answer)
    assert [record.is_cleared for record in again.commands.values()] == [False, True]
    assert (tmp_path / "journal.jsonl").read_text().count("\n") == 4
