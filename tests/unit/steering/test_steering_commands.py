"""A command is decided by the study alone, and its effect is rebuilt from the journal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.studies import study as new_study

from loraxs_search.records import AnswerState, Command, TrialState
from loraxs_search.search.driver.commander import Commander, InboxSource
from loraxs_search.search.ledger.view import SilentView
from loraxs_search.steering import SteeringState, steered
from loraxs_search.studies import StudyFolder


class Heard(SilentView):
    """Keeps what is said of commands."""

    def __init__(self) -> None:
        self.lines = list[str]()

    def commanded(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def folder() -> StudyFolder:
    """A study with three trials under way, and one that has ended."""
    folder = new_study("s")
    journal = folder.journal()
    for number in range(4):
        journal.trial_started(f"{number:05d}", {})
    journal.trial_ended("00003", TrialState.COMPLETE, "trained all 20 steps")
    return folder


def command(verb: str, *trials: str, name: str = "c1", **arguments: bool) -> Command:
    return Command(name, verb, trials, arguments, sent_by="ann on host", issued_at=float(name[1:]))


def state(folder: StudyFolder) -> SteeringState:
    return steered(folder, folder.journal()).state


def commander(folder: StudyFolder, follow: Callable[[], None] = lambda: None) -> Commander:
    study = steered(folder, folder.journal())
    return Commander(study, [InboxSource(folder.inbox())], Heard(), follow)


def test_a_stop_is_answered_once_and_known_to_every_later_driver(folder: StudyFolder) -> None:
    folder.inbox().put(command("stop", "00001", now=True))
    commander(folder).take_all()
    record = folder.journal().commands["c1"]
    assert record.answer is not None
    assert (record.answer.state, record.answer.text) == (AnswerState.DONE, "trial 00001 ends at its next step")
    assert state(folder).stopping == {"00001": "stopped by a person (ann on host)"}
    assert state(folder).at_once == {"00001"}
    assert not list(folder.inbox().waiting())
