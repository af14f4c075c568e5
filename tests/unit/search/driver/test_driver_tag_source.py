"""Commands in tags of MLflow's runs: seen, journalled, answered, deleted, each once wherever a driver is killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from support.searched_studies import Tried, confirm, searched
from support.servers import MlflowServer
from support.studies import study as new_study

from loraxs_search.errors import CommandError, StudyError
from loraxs_search.records import AnswerState, CommandAnswer, CommandTag
from loraxs_search.search.driver import tag_source
from loraxs_search.search.driver.commander import Commander, answer_waiting, asks_for_more, commands, foreseen
from loraxs_search.search.driver.tag_source import TagSource, waiting_in_tags
from loraxs_search.search.ledger.view import SilentView
from loraxs_search.steering import SteeringState, decide, steered
from loraxs_search.steering.send import new_command, send, send_waiting
from loraxs_search.studies import StudyFolder
from loraxs_search.tracking import Tracker, recorded_id
from loraxs_search.tracking.command_tags import ANSWER, COMMAND, CommandTags
from loraxs_search.tracking.store import connect


class RecordedStudy:
    """A study with two trials that MLflow knows."""

    def __init__(self, uri: str, folder: StudyFolder | None = None) -> None:
        self.uri, self.folder = uri, folder or new_study("s", uri)
        self.client = connect(uri)
        journal = self.folder.journal()
        with Tracker("s", self.folder.path, uri, "t") as tracker:
            tracker.search_started("task: sst2\n", self.folder.info.search)
            for trial_id in ("00000", "00001"):
                journal.trial_started(trial_id, {})
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

    @contextmanager
    def driver(self) -> Iterator[Commander]:
        """Run a driver's part in commands, its source closed as a search ends."""
        study = steered(self.folder, self.folder.journal())
        tags = CommandTags(self.uri, recorded_id(self.folder.path), "t")
        with closing(TagSource(tags, study.journal)) as source:
            yield Commander(study, [source], SilentView(), lambda: None)

    def drive(self, until: Callable[[], bool]) -> None:
        with self.driver() as commander:
            end = time.monotonic() + 60
            while not until():
                assert time.monotonic() < end
                commander.take_all()
                threading.Event().wait(0.02)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tag_source, "_EVERY_S", 0.02)


@pytest.fixture
def recorded(store_uri: str) -> RecordedStudy:
    return RecordedStudy(store_uri)


def is_cleared(recorded: RecordedStudy, number: int = 1) -> bool:
    records = recorded.folder.journal().commands.values()
    return len(records) == number and all(record.is_cleared for record in records)


def test_a_command_on_a_trials_run_means_that_trial(recorded: RecordedStudy) -> None:
    recorded.type("stop --now", "00001")
    recorded.drive(lambda: is_cleared(recorded))
    assert recorded.state().at_once == {"00001"}
    assert recorded.state().stopping == {"00001": "stopped by a person (somebody in MLflow)"}
    assert COMMAND not in recorded.tags("00001")
    assert recorded.tags("00001")[ANSWER] == "stop --now: done: trial 00001 ends at its next step"


def test_commands_on_the_search_name_their_trials_and_what_is_wrong_is_said(recorded: RecordedStudy) -> None:
    recorded.type("pause 00000")
    recorded.type("pause 7", "00001")
    recorded.drive(lambda: is_cleared(recorded, 2))
    assert recorded.state().paused == {"00000"}
    assert recorded.tags()[ANSWER].startswith("pause 00000: done: ")
    assert "refused: `trial` must be one of study 's': 00001, 00000, but got '00007'." in recorded.tags("00001")[ANSWER]


def test_what_waits_as_a_search_ends_is_answered(recorded: RecordedStudy) -> None:
    recorded.folder.journal().search_ended("")
    recorded.type("stop", "00001")
    study = steered(recorded.folder, recorded.folder.journal())
    with commands(study, recorded.uri, SilentView(), lambda: None):
        pass  # it has not looked once
    assert "refused" in recorded.tags("00001")[ANSWER]
    assert COMMAND not in recorded.tags("00001")
    assert is_cleared(recorded)


def test_the_same_words_a_second_time_are_a_second_command(recorded: RecordedStudy) -> None:
    for number, words in enumerate(("pause 0", "continue 0", "pause 0"), start=1):
        recorded.type(words)
        recorded.drive(lambda number=number: is_cleared(recorded, number))
    assert [record.command.verb for record in recorded.folder.journal().commands.values()] == [
        "pause",
        "continue",
        "pause",
    ]
    assert recorded.state().paused == {"00000"}


class KilledError(BaseException):
    """Ends what it is raised in; what has been written stays."""


@pytest.mark.parametrize("after", ["read", "commanded", "answered", "answer written", "deleted", "cleared"])
def test_a_driver_that_is_killed_anywhere_leaves_a_command_that_counts_once(
    recorded: RecordedStudy, after: str
) -> None:
    """What it did up to there, step by step, by hand; then another one comes."""
    recorded.type("stop", "00001")
    study = steered(recorded.folder, recorded.folder.journal())
    tags = CommandTags(recorded.uri, recorded_id(recorded.folder.path), "t")
    steps = iter(["read", "commanded", "answered", "answer written", "deleted", "cleared"])
    (command,) = waiting_in_tags(tags, study.journal)
    answer = decide(command, study)
    acts: list[Callable[[], object]] = [
        lambda: None,
        lambda: study.journal.commanded(command),
        lambda: study.journal.answered(answer),
        lambda: recorded.client.set_tag(recorded.runs["00001"], ANSWER, "..."),
        lambda: recorded.client.delete_tag(recorded.runs["00001"], COMMAND),
        lambda: study.journal.command_cleared(command.command_id),
    ]
    for step, act in zip(steps, acts, strict=True):
        act()
        if step == after:
            break
    recorded.drive(lambda: is_cleared(recorded))
    text = (recorded.folder.path / "journal.jsonl").read_text()
    assert [text.count(f'"{word}"') for word in ("commanded", "answered", "command_cleared")] == [1, 1, 1]
    assert list(recorded.state().stopping) == ["00001"]
    assert COMMAND not in recorded.tags("00001")


def test_a_command_that_is_typed_while_another_is_answered_stays(recorded: RecordedStudy) -> None:
    recorded.type("pause 0")
    tags = CommandTags(recorded.uri, recorded_id(recorded.folder.path), "t")
    (tagged,) = tags.read()
    recorded.type("pause 1")
    tags.answer(tagged.tag, CommandAnswer("c1", AnswerState.DONE, "..."))
    assert recorded.tags()[COMMAND] == "pause 1"
    recorded.drive(lambda: is_cleared(recorded))
    assert recorded.state().paused == {"00001"}


# ---- from other machines, on a real server ---------------------------------------------------------------------------
def test_another_machine_sends_through_the_server(
    make_mlflow_server: Callable[[], MlflowServer],
) -> None:
    server = make_mlflow_server()
    server.start()
    recorded = RecordedStudy(server.uri)
    over = threading.Event()
    driver = threading.Thread(target=lambda: recorded.drive(over.is_set))
    driver.start()
    try:
        answer = send("s", new_command("stop", ["1"]), tracking_uri=server.uri)
        assert (answer.state, answer.text) == (AnswerState.DONE, "trial 00001 ends at its next report")
        with pytest.raises(CommandError, match="00001 of study 's' is to stop"):
            send("s", new_command("pause", ["00001"]), tracking_uri=server.uri)
    finally:
        over.set()
        driver.join()
    assert not [key for key in recorded.tags() if key.startswith((COMMAND, ANSWER))]
    queued = send("s", new_command("finish"), tracking_uri=server.uri, wait_s=0.0)
    assert queued.state is AnswerState.QUEUED
    assert f"loraxs.answer.{queued.command_id}" in queued.text
    server.kill()
    away = send("s", new_command("pause"), tracking_uri=server.uri)
    assert away.state is AnswerState.QUEUED
    assert "must be reachable, but: " in away.text
    assert "`loraxs-search sync` sends it" in away.text
    (later,) = send_waiting()
    assert later.is_waiting
    with recorded.driver() as commander:  # away: nothing is heard, and nothing is raised
        commander.take_all()
    assert len(recorded.folder.journal().commands) == 2
    server.start()
    assert [(sent.is_waiting, sent.text.partition(" (")[0]) for sent in send_waiting()] == [(False, "pause")]
    assert send_waiting() == []
    verbs = [
        tag.sent.verb for tag in CommandTags(server.uri, recorded_id(recorded.folder.path), "t").read() if tag.sent
    ]
    assert sorted(verbs) == ["finish", "pause"]


def test_a_study_that_is_nowhere_is_said_to_be(store_uri: str) -> None:
    with pytest.raises(StudyError, match="but there is no 'nothing'"):
        send("nothing", new_command("finish"))


@pytest.fixture
def ended(store_uri: str) -> RecordedStudy:
    """A study whose search has come to its end, with candidates."""
    folder = searched("s", [Tried({"rank": 4}, 0.9), Tried({"rank": 8}, 0.8)], finished=False)
    confirm(folder, "00000", [0.9], [1, 0], [1, 1])
    folder.journal().search_ended("")
    recorded = RecordedStudy(store_uri, folder)
    with Tracker("s", recorded.folder.path, recorded.uri, "t") as tracker:
        tracker.search_finished("FINISHED")
        assert tracker.flush(60)
    return recorded


def test_a_study_that_has_ended_takes_from_afar_what_gives_it_more(ended: RecordedStudy) -> None:
    with pytest.raises(CommandError, match=r"but that of 's' at .* has ended"):
        send("s", new_command("finish"), tracking_uri=ended.uri)
    answer = send("s", new_command("extend", arguments={"trials": 3}), tracking_uri=ended.uri)
    assert answer.state is AnswerState.QUEUED
    assert answer.text == "study 's' has ended: `loraxs-search resume s`, where its folder is, carries it out"
    assert not asks_for_more(ended.folder, foreseen(ended.folder))
    state = foreseen(ended.folder, ended.uri)  # what `resume` looks at first
    assert asks_for_more(ended.folder, state)
    assert state.trials == 2 + 3
    answer_waiting(ended.folder, ended.uri)
    assert is_cleared(ended)
    assert asks_for_more(ended.folder, foreseen(ended.folder)), "it goes on, though the tag is gone"


def test_what_is_typed_at_a_study_that_has_ended_is_answered_when_it_is_resumed(ended: RecordedStudy) -> None:
    ended.type("stop", "00001")
    assert not asks_for_more(ended.folder, foreseen(ended.folder, ended.uri))
    answer_waiting(ended.folder, ended.uri)
    assert "all trials of 's' have ended" in ended.tags("00001")[ANSWER]
    assert COMMAND not in ended.tags("00001")


def test_a_store_that_is_away_keeps_no_ended_study_from_being_shown(ended: RecordedStudy, tmp_path: Path) -> None:
    away = "http://127.0.0.1:9"
    assert foreseen(ended.folder, away).num_reopenings == 0
    assert foreseen(ended.folder, f"sqlite:///{tmp_path / 'none.db'}").num_reopenings == 0
    assert not (tmp_path / "none.db").exists()


def test_a_folder_without_runs_has_no_commands(store_uri: str) -> None:
    folder: StudyFolder = new_study("empty", store_uri)
    assert CommandTags(store_uri, recorded_id(folder.path), "t").read() == []


def test_an_answer_that_cannot_be_written_keeps_no_other_from_its_sender(
    recorded: RecordedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = CommandTags.answer

    def answer(self: CommandTags, tag: CommandTag, answer: CommandAnswer) -> None:
        if tag.run_id == recorded.runs["00000"]:
            recorded.client.delete_run(tag.run_id)  # somebody does, in the UI
        write(self, tag, answer)

    monkeypatch.setattr(CommandTags, "answer", answer)
    recorded.type("stop", "00000")
    recorded.type("pause", "00001")
    recorded.drive(lambda: is_cleared(recorded, 2))
    assert COMMAND not in recorded.tags("00001")
    assert recorded.state().stopping.keys() == {"00000"}
