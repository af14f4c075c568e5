"""Words in tags of MLflow's runs: taken off, journalled, answered; other words and other machines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from mlflow.exceptions import MlflowException
from support.servers import MlflowServer
from support.studies import study as new_study
from support.tracked import Tracked

from loraxs_search.errors import CommandError, StudyError, TrackingError
from loraxs_search.records import AnswerState, Command, CommandAnswer
from loraxs_search.search.driver import commander as tag_source
from loraxs_search.search.driver.commander import Commander, commands
from loraxs_search.steering import SteeringState, steered
from loraxs_search.steering.send import new_command, send
from loraxs_search.studies import StudyFolder
from loraxs_search.tracking.command_tags import ANSWER, COMMAND, CommandTags, TaggedWord
from loraxs_search.tracking.followed import recorded_id
from loraxs_search.tracking.store import connect


class RecordedStudy:
    """A study with two trials that MLflow knows."""

    def __init__(self, uri: str) -> None:
        self.uri, self.folder = uri, new_study("s", uri)
        self.client = connect(uri)
        with Tracked("s", self.folder.path, uri, "t") as tracker:
            tracker.search_started("task: sst2\n", self.folder.info.search)
            for trial_id in ("00000", "00001"):
                tracker.trial_started(trial_id, {})
            assert tracker.flush(60)
            self.runs = {trial_id: tracker.run_id(trial_id) or "" for trial_id in ("", "00000", "00001")}

    def tags(self, trial_id: str = "") -> dict[str, str]:
        return dict(self.client.get_run(self.runs[trial_id]).data.tags)

    def type(self, value: str, trial_id: str = "") -> None:
        """Do what a person does in the UI."""
        self.client.set_tag(self.runs[trial_id], COMMAND, value)

    def state(self) -> SteeringState:
        return steered(self.folder, self.folder.journal()).state

    def driver(self, *, goes_on: bool = False) -> AbstractContextManager[Commander]:
        """Return a driver's part in commands, which ends as a search does."""
        study = steered(self.folder, self.folder.journal())
        return commands(study, self.uri, lambda *_: None, lambda: None, goes_on=goes_on)

    def drive(self, *answered: str, goes_on: bool = False) -> None:
        """Run it until these runs have answers."""
        with self.driver(goes_on=goes_on) as commander:
            end = time.monotonic() + 60
            while not all(ANSWER in self.tags(each) for each in answered):
                assert time.monotonic() < end
                commander.take_all()
                threading.Event().wait(0.02)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_source, "_TAGS_EVERY_S", 0.02)


@pytest.fixture
def recorded(store_uri: str) -> RecordedStudy:
    return RecordedStudy(store_uri)


def test_stop_on_a_trials_run_means_that_trial(recorded: RecordedStudy) -> None:
    recorded.type(" stop ", "00001")
    recorded.drive("00001")
    assert recorded.state().stopping == {"00001": "stopped by a person (a user in MLflow)"}
    assert COMMAND not in recorded.tags("00001")
    assert recorded.tags("00001")[ANSWER] == "stop: done: trial 00001 ends at its next report"


def test_words_on_the_searchs_run_mean_the_whole_search(recorded: RecordedStudy) -> None:
    recorded.type("pause")
    recorded.drive("")
    assert recorded.state().is_paused
    recorded.client.delete_tag(recorded.runs[""], ANSWER)
    recorded.type("pause")  # the same word again is a command again
    recorded.drive("")
    assert recorded.tags()[ANSWER].startswith("pause: refused: ")
    assert [record.command.verb for record in recorded.folder.journal().commands.values()] == ["pause", "pause"]


@pytest.mark.parametrize(
    ("value", "trial"),
    [
        ("stop --now=false", "00000"),
        ("stop 00001", ""),
        ("pause", "00000"),
        ("extend --trials 3", ""),
        ('{"command_id": "../snapshots/00001", "verb": "clone", "trial_ids": ["00000"]}', ""),
        ("", "00000"),
    ],
)
def test_anything_but_a_word_is_refused_and_no_command(recorded: RecordedStudy, value: str, trial: str) -> None:
    recorded.type(value, trial)
    recorded.drive(trial)
    assert ": refused: " in recorded.tags(trial)[ANSWER]
    assert COMMAND not in recorded.tags(trial)
    assert not recorded.folder.journal().commands


def test_what_waits_as_a_search_ends_is_answered(recorded: RecordedStudy) -> None:
    recorded.folder.journal().search_ended("")
    recorded.type("stop", "00001")
    with recorded.driver():
        pass  # it has not looked once
    assert "refused" in recorded.tags("00001")[ANSWER]
    assert COMMAND not in recorded.tags("00001")


def test_an_answer_that_cannot_be_written_keeps_no_other_from_its_sender(
    recorded: RecordedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = CommandTags.answer

    def answer(self: CommandTags, tagged: TaggedWord, text: str) -> None:
        if tagged.run_id == recorded.runs["00000"]:
            recorded.client.delete_run(tagged.run_id)  # somebody does, in the UI
        write(self, tagged, text)

    monkeypatch.setattr(CommandTags, "answer", answer)
    recorded.type("stop", "00000")
    recorded.type("stop", "00001")
    recorded.drive("00001")
    assert recorded.state().stopping.keys() == {"00000", "00001"}


def test_a_folder_without_runs_has_no_words(store_uri: str) -> None:
    folder: StudyFolder = new_study("empty", store_uri)
    assert not CommandTags(store_uri, recorded_id(folder.path), "t").standing()


# ---- kills -----------------------------------------------------------------------------------------------------------
def claimed(recorded: RecordedStudy) -> TaggedWord:
    """Type `stop` on a trial, and let a driver die once it has claimed it."""
    recorded.type("stop", "00001")
    tags = CommandTags(recorded.uri, recorded_id(recorded.folder.path), "t")
    (word,) = tags.standing()
    return tags.claim(word)


def test_a_driver_killed_before_it_journals_a_word_leaves_it_to_the_next_one(recorded: RecordedStudy) -> None:
    word = claimed(recorded)
    recorded.drive("00001", goes_on=True)
    assert list(recorded.folder.journal().commands) == [word.command_id]
    assert recorded.state().stopping.keys() == {"00001"}
    assert COMMAND not in recorded.tags("00001")


def test_a_driver_killed_before_it_takes_a_word_away_has_it_carried_out_once(recorded: RecordedStudy) -> None:
    word, journal = claimed(recorded), recorded.folder.journal()
    journal.commanded(Command(word.command_id, "stop", ("00001",)))
    journal.answered(CommandAnswer(word.command_id, AnswerState.DONE, "trial 00001 ends at its next report"))
    before = recorded.folder.journal_path.read_bytes()
    recorded.drive("00001", goes_on=True)
    assert recorded.folder.journal_path.read_bytes() == before
    assert recorded.tags("00001")[ANSWER] == "stop: done: trial 00001 ends at its next report"
    assert COMMAND not in recorded.tags("00001")


def test_a_tag_that_cannot_be_written_keeps_no_word_behind_it_waiting(
    recorded: RecordedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = CommandTags.claim

    def refused(self: CommandTags, tagged: TaggedWord) -> TaggedWord:
        if tagged.trial_id == "00001":
            raise MlflowException("this run is read-only")
        return claim(self, tagged)

    monkeypatch.setattr(CommandTags, "claim", refused)
    for trial in ("00000", "00001", ""):
        recorded.type("stop" if trial else "pause", trial)
    recorded.drive("00000", "")
    assert recorded.state().stopping.keys() == {"00000"}
    assert recorded.state().is_paused
    assert recorded.tags("00001")[COMMAND] == "stop"


def test_a_word_that_was_written_while_no_search_ran_is_refused_by_the_next_one(recorded: RecordedStudy) -> None:
    recorded.type("finish")
    recorded.drive("", goes_on=True)
    assert recorded.tags()[ANSWER].startswith("finish: refused: it was written while no search ran")
    assert COMMAND not in recorded.tags()
    assert not recorded.folder.journal().commands
    with recorded.driver(goes_on=True) as commander:
        end = time.monotonic() + 60
        while recorded.state().finishing is None:  # the same word again, once the search runs
            assert time.monotonic() < end
            recorded.type("finish")
            commander.take_all()
            threading.Event().wait(0.05)


# ---- from other machines, on a real server ---------------------------------------------------------------------------
def test_another_machine_writes_words_to_the_server(make_mlflow_server: Callable[[], MlflowServer]) -> None:
    server = make_mlflow_server()
    server.start()
    recorded = RecordedStudy(server.uri)
    queued = send("s", new_command("stop", ["1"]), tracking_uri=server.uri)
    assert (queued.state, ANSWER in queued.text) == (AnswerState.QUEUED, True)
    assert recorded.tags("00001")[COMMAND] == "stop"
    send("s", new_command("pause"), tracking_uri=server.uri)
    recorded.drive("", "00001")
    assert (recorded.state().stopping.keys(), recorded.state().is_paused) == ({"00001"}, True)
    for command in (
        new_command("stop", ["1"], {"now": True}),
        new_command("pause", ["1"]),
        new_command("add", params={"rank": 4}),
        new_command("extend", arguments={"trials": 3}),
    ):
        with pytest.raises(CommandError) as refused:
            send("s", command, tracking_uri=server.uri)
        assert recorded.tags()["hardware.host"] in str(refused.value.hint), "the machine to type it on"
    for trial in ("7", "' or tags.x = '"):
        with pytest.raises(CommandError, match="`trial`"):
            send("s", new_command("stop", [trial]), tracking_uri=server.uri)
    assert all(COMMAND not in recorded.tags(each) for each in recorded.runs)
    server.kill()
    with pytest.raises(TrackingError, match="must be reachable"):
        send("s", new_command("pause"), tracking_uri=server.uri)
    with recorded.driver() as commander:  # away: nothing is heard, and nothing is raised
        commander.take_all()
    assert len(recorded.folder.journal().commands) == 2


def test_a_study_that_has_ended_or_is_nowhere_is_said_to_be(recorded: RecordedStudy) -> None:
    with Tracked("s", recorded.folder.path, recorded.uri, "t") as tracker:
        tracker.search_finished("FINISHED")
        assert tracker.flush(60)
    with pytest.raises(CommandError, match="has ended"):
        send("s", new_command("finish"), tracking_uri=recorded.uri)
    with Tracked("s", recorded.folder.path, recorded.uri, "t") as tracker:
        tracker.search_started("task: sst2\n", recorded.folder.info.search)
        tracker.search_finished("KILLED")
        assert tracker.flush(60)
    with pytest.raises(CommandError) as refused:
        send("s", new_command("finish"), tracking_uri=recorded.uri)
    assert "loraxs-search resume s" in str(refused.value.hint)
    with pytest.raises(StudyError, match="'nothing'"):
        send("nothing", new_command("finish"))
