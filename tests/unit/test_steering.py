"""A command is decided by the study alone, counts once whatever is killed, and its effect is in the journal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.studies import study as new_study

from loraxs_search import steering
from loraxs_search.errors import CommandError, HomeError
from loraxs_search.log.events import Answered, DriverStarted, TrainingEnded, TrialEnded, TrialStarted
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.search import Command, SearchPlan
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.study_status import study_status
from loraxs_search.steering import VERBS, apply, decide, new_command, read_params, send, steered, take_commands
from loraxs_search.studies.folder import CommandInbox, StudyFolder
from loraxs_search.studies.lease import Lease
from loraxs_search.studies.storage import Storage


class KilledError(BaseException):
    """Ends a driver as kill -9 does: nothing is done after it."""


def begun(name: str) -> StudyFolder:
    """Return a study with three trials under way, and one that has ended."""
    folder = new_study(name)
    journal = folder.journal()
    for number in range(4):
        journal.append(TrialStarted(trial_id=f"{number:05d}", params={}))
    journal.append(TrialEnded(trial_id="00003", state=TrialState.COMPLETE, reason="trained all 20 steps"))
    return folder


@pytest.fixture
def folder():
    return begun("s")


def command(verb: str, *trials: str, name: str = "c1", **arguments: Any) -> Command:
    return Command(name, verb, trials, arguments, sent_by="ann on host", issued_at=float(name[1:]))


def state(folder: StudyFolder) -> Any:
    return steered(folder).state


def take(folder: StudyFolder, *commands: Command) -> list[str]:
    """Have a driver of its own take commands; return what was said of them."""
    for each in commands:
        folder.inbox.put(each)
    lines = list[str]()
    take_commands(steered(folder), lambda said: lines.append(said.text))
    assert not list(folder.inbox.waiting())
    return lines


# ---- verbs -----------------------------------------------------------------------------------------------------------
def test_a_stop_is_known_to_every_later_driver(folder):
    (line,) = take(folder, command("stop", "00001", now=True))
    assert line == "stop 00001 --now (ann on host): trial 00001 ends at its next step"
    assert state(folder).stopping == {"00001": "stopped by a person (ann on host)"}
    assert state(folder).at_once == {"00001"}


def test_finish_counts_the_added_trials_that_are_still_to_start(folder):
    study = steered(folder)
    apply(command("add"), Answered(command_id="c1", state="done", text=""), study.state)
    assert "the running ones, and the 1 added" in decide(command("finish", name="c2"), study).text
    take(folder, command("finish", name="c3"))
    assert state(folder).finishing == "finished by a person (ann on host)"


REFUSED = [
    ([], command("stop", "00003", name="c9"), "already ended, COMPLETE: trained all 20 steps"),
    ([], command("stop", "00009", name="c9"), "one of study 's': 00003, "),
    ([], command("finish", "00001", name="c9"), "no trial"),
    ([], command("extend", name="c9"), "got neither"),
    ([], command("stpo", "00001", name="c9"), "one of: stop, "),
    ([command("finish")], command("finish", name="c9"), "about to end"),
    ([TrainingEnded(notice="")], command("finish", name="c9"), "nothing to finish"),
]


@pytest.mark.parametrize(("before", "asked", "why"), REFUSED)
def test_what_cannot_be_carried_out_is_refused_and_changes_nothing(before, asked, why, folder):
    for each in before:
        take(folder, each) if isinstance(each, Command) else folder.journal().append(each)
    as_it_was = state(folder)
    (line,) = take(folder, asked)
    answer = folder.journal().answers["c9"]
    assert ("refused" in line, answer.state, why in answer.text) == (True, "refused", True)
    assert answer.hint
    assert state(folder) == as_it_was


# ---- each once -------------------------------------------------------------------------------------------------------
some_trials = st.lists(st.sampled_from([f"{number:05d}" for number in range(5)]), max_size=2, unique=True)
verbs = st.sampled_from([*VERBS, "nonsense"])
commands = st.lists(st.tuples(verbs, some_trials, st.booleans()), min_size=1, max_size=12)
numbers = iter(range(1_000_000))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands, st.lists(st.integers(0, 5), max_size=8))
def test_each_command_counts_once_wherever_drivers_are_killed(asked, kills):
    """A driver that is killed after so many of its writes, and then one that is not: as one that never was."""
    sent = [command(verb, *trials, name=f"c{n}", now=now) for n, (verb, trials, now) in enumerate(asked)]
    calm, killed = begun(f"calm-{next(numbers)}"), begun(f"killed-{next(numbers)}")
    take(calm, *sent)
    for each in sent:
        killed.inbox.put(each)
    for writes in kills:
        left = [writes]

        def dying(whole: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                if left[0] == 0:
                    raise KilledError
                left[0] -= 1
                return whole(*args)

            return call

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KilledError):
            for of, name in ((StudyLog, "append"), (CommandInbox, "remove")):
                patch.setattr(of, name, dying(getattr(of, name)))
            take(killed)
    take(killed)
    ours, theirs = killed.journal(), calm.journal()
    states = [{name: it.state for name, it in each.answers.items()} for each in (ours, theirs)]
    assert states[0] == states[1]
    assert list(ours.commands) == list(theirs.commands)
    assert asdict(state(killed)) == asdict(state(calm))
    text = (killed.path / "journal.jsonl").read_text()
    assert text.count('"Commanded"') == text.count('"Answered"') == len(sent)


# ---- senders ---------------------------------------------------------------------------------------------------------
def test_a_command_for_a_study_that_nobody_runs_is_queued_and_counts_where_the_next_one_is_decided_on(
    folder, monkeypatch
):
    before = (folder.path / "journal.jsonl").read_bytes()
    answer = send("s", new_command("stop", ["1"]))
    assert (folder.path / "journal.jsonl").read_bytes() == before, "a decision changes nothing"
    assert answer.state == "queued"
    assert "nobody runs study 's' on this machine: `loraxs-search resume s` carries it out first" in answer.text
    monkeypatch.setattr(steering, "WAIT_S", 0.0)
    with folder.lock():
        answer = send("s", new_command("finish"))
    assert answer.state == "queued", "a driver that does not answer"
    assert "carried out in a moment" in answer.text
    with pytest.raises(CommandError, match="about to end"):
        send("s", new_command("finish"))
    assert len(take(folder)) == 2
    assert list(state(folder).stopping) == ["00001"]


def test_commands_that_wait_keep_their_order_though_the_clock_is_set_back(folder, monkeypatch):
    for now, verb in ((2000.0, "finish"), (1000.0, "extend"), (1000.0, "finish")):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        send("s", new_command(verb, arguments={"trials": 1} if verb == "extend" else None))
    assert [each.verb for each in folder.inbox.waiting()] == ["finish", "extend", "finish"]


def test_a_study_that_another_machine_runs_is_reached_through_its_storage(fresh_home, tmp_path, monkeypatch):
    there = Storage(str(tmp_path))
    folder = new_study("away", storage=there.uri)
    folder.journal().append(TrialStarted(trial_id="00000", params={}))
    Lease(there, "away").take()
    monkeypatch.setattr("loraxs_search.studies.lease.platform.node", lambda: "another")
    answer = send("away", new_command("finish"))
    assert (answer.state, list(folder.inbox.waiting())) == ("queued", [])
    folder.inbox.take_from(there)  # as the driver's mirror does
    assert [each.verb for each in folder.inbox.waiting()] == ["finish"]
    folder.inbox.take_from(there)
    assert len(list(folder.inbox.waiting())) == 1


def test_a_study_whose_storage_has_no_account_here_is_reached_through_its_folder(fresh_home, monkeypatch):
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    folder = new_study("away", storage="az://container/studies")
    folder.journal().append(TrialStarted(trial_id="00000", params={}))
    assert send("away", new_command("finish")).state == "queued"
    assert [each.verb for each in folder.inbox.waiting()] == ["finish"]
    assert study_status(folder).state == "interrupted"


def test_two_extensions_of_an_ended_search_add_up(folder):
    folder.journal().append(TrainingEnded(notice=""))
    study = steered(folder)
    for number, total in enumerate((9, 14)):
        more = command("extend", name=f"c{number}", trials=5)
        answer = decide(more, study)
        assert answer.state == "done"
        apply(more, answer, study.state)
        assert study.state.trials == total


def test_time_alone_is_enough_for_a_trial_that_was_added_when_the_time_ran_out(fresh_home):
    folder = new_study("s", search=SearchPlan(trials=1, time_budget=100.0))
    journal = folder.journal()
    journal.append(DriverStarted(since=time.time()))
    journal.append(TrialStarted(trial_id="00000", params={"rank": 4}))
    study = steered(folder, journal)
    added = Command("a" * 32, "add")
    apply(added, Answered(command_id="a", state="done", text="", facts={"params.rank": 4}), study.state)
    journal.append(TrialEnded(trial_id="00000", state=TrialState.COMPLETE, reason=""))
    journal.append(TrainingEnded(notice="the time budget is used up"))
    more = command("extend", time="1h")
    assert decide(more, study).facts["reopens"] is True
    journal.append(TrialStarted(trial_id="00001", params={"rank": 4}, command=added.command_id))
    assert decide(more, study).state == "refused"


def test_a_time_to_add_is_written_as_a_time_budget_is_and_counts_from_now(fresh_home, monkeypatch):
    folder, now = new_study("s"), time.time()
    written = {"1h30m": 5400, 2.5: 2.5, "9" * 320 + "h": None, "nan": None, "-1": None}
    for given_time, seconds in written.items():
        answer = decide(command("extend", time=given_time), steered(folder))
        assert (answer.state == "refused") is (seconds is None)
        assert answer.facts.get("time_budget_s", seconds) == (seconds and pytest.approx(seconds, abs=1e-3))
    journal = folder.journal()
    journal.append(DriverStarted(since=now))
    study = steered(folder, journal)
    monkeypatch.setattr("loraxs_search.log.clock.steady_time", lambda: now + 10_000)
    answer = decide(command("extend", time="1h"), study)
    assert answer.facts["time_budget_s"] == pytest.approx(13_600, abs=1), "though nothing was recorded meanwhile"
    assert folder.journal().spent_by_now_s < 60, "of a journal that no driver here writes, what was recorded"


def test_a_verb_that_fails_is_refused_and_a_disk_that_fails_is_not(fresh_home, monkeypatch):
    seen, check = steered(new_study("s")), Mock(side_effect=(OverflowError("too large"), HomeError("the disk is full")))
    monkeypatch.setitem(VERBS, "finish", replace(VERBS["finish"], check=check))
    answer = decide(command("finish"), seen)
    assert (answer.state, "too large" in answer.text) == ("refused", True)
    with pytest.raises(HomeError):
        decide(command("finish"), seen)


def test_trials_are_named_by_their_numbers_and_numpys_numbers_are_numbers():
    given = {"3": "00003", "00004": "00004", "123456": "123456", "0": "00000", "9" * 5000: "9" * 5000, 5: "00005"}
    assert new_command("stop", [*given, "3"]).trial_ids == tuple(given.values())
    params = {"rank": np.int64(8), "learning_rate": np.float32(0.5), "rslora": np.bool_(True), "head": "full"}
    sent = new_command("add", [np.int64(3)], {"trials": np.int64(2)}, params)
    assert sent.trial_ids == ("00003",)
    values = [*sent.arguments.values(), *sent.params.values()]
    assert [type(value) for value in values] == [int, int, float, bool, str]


def test_values_of_params_are_read_as_numbers_where_they_are():
    read = read_params(["rank=16", "rate=1e-3", "flag=true", "note=a=b", "word=null", "step=1_6"])
    assert list(read.values()) == [16, 1e-3, True, "a=b", "null", "1_6"]
    with pytest.raises(CommandError, match="NAME=VALUE"):
        steering.read_params(["rank"])
