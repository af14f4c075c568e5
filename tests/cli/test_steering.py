"""The verbs that steer a search, for a study that nobody runs: queued and said, refused with the reason, shown."""

from __future__ import annotations

import json

import pytest
from support.studies import study as new_study

from loraxs_search.cli._main import run
from loraxs_search.log.events import TrialEnded, TrialStarted
from loraxs_search.records.trial import TrialState
from loraxs_search.studies.folder import StudyFolder


@pytest.fixture
def folder() -> StudyFolder:
    """A study that was interrupted, with a trial that has ended and one that has not."""
    folder = new_study("s")
    journal = folder.journal()
    for trial_id in ("00000", "00001"):
        journal.append(TrialStarted(trial_id=trial_id, params={}))
    journal.append(TrialEnded(trial_id="00000", state=TrialState.PRUNED, reason="ASHA stopped it"))
    return folder


@pytest.mark.parametrize("args", [("stop", "s", "1", "--now"), ("extend", "s", "--trials", "2"), ("finish", "s")])
def test_a_command_is_queued_and_status_names_it(
    args: tuple[str, ...], folder: StudyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "s: queued: nobody runs study 's' on this machine" in said.err
    assert run(("status", "s")) == 0
    assert f"not answered yet: {args[0]} " in capsys.readouterr().err
    assert run(("status", "s", "--json")) == 0
    (command,) = json.loads(capsys.readouterr().out)["commands"]
    assert command["verb"] == args[0]


@pytest.mark.parametrize(
    ("args", "why", "hint"),
    [
        (("stop", "s", "00000"), "Trial 00000 of study 's' has already ended, PRUNED: ASHA stopped it", "status s"),
        (("stop", "s", "7"), "`trial` must be one of study 's': 00001, 00000, but got '00007'", "status s"),
        (("add", "s", "--from", "7"), "`trial` must be one of study 's': 00001, 00000, but got '00007'", "status s"),
        (("finish", "nothing"), "but there is no 'nothing'", "ssh MACHINE"),
    ],
)
def test_what_is_refused_says_why_and_what_to_do(
    args: tuple[str, ...], why: str, hint: str, folder: StudyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 1
    said = capsys.readouterr()
    assert why in said.err
    assert "hint: " in said.err
    assert hint in said.err
    assert not list(folder.inbox().waiting())


def test_the_answer_as_json(folder: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(("stop", "s", "1", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "queued"
