"""`status` from Python: a study as the command line shows it, and all of them.

Who follows a study from its folder learns what its launch says, in the same words, and when it ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
from support.searched_studies import ScriptedDriver, Tried, searched
from support.studies import study

import loraxs_search
from loraxs_search.errors import StudyError
from loraxs_search.log.events import SearchEnded, ShownEvent, TrialsAdvanced
from loraxs_search.records.codec import to_json
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.study_status import StudyEvents, watch

TRIALS = (Tried({"rank": 4, "learning_rate": 1e-3}, 0.7), Tried({"rank": 8, "learning_rate": 1e-3}, 0.9))


def test_it_is_what_the_command_line_prints(fresh_home, say):
    assert loraxs_search.status() == []
    searched("s", TRIALS)
    (summary,) = loraxs_search.status()
    assert (summary.study, summary.trials) == ("s", "2/2")
    for unknown in (loraxs_search.status, lambda name: next(loraxs_search.watch(name))):
        with pytest.raises(StudyError, match="'t'"):
            unknown("t")
    status = loraxs_search.status("s")
    assert json.loads(say("status", "s", "--json").ok) == json.loads(to_json(status))
    assert [row.trial_id for row in status.trials] == ["00001", "00000"]
    assert (status.progress.ended, status.commands, status.place) == (2, [], "")


def test_a_running_search_stands_as_live_views_draw_it(fresh_home, say):
    driver = ScriptedDriver(study("s"))
    driver.begin()
    driver.train("00000", 20)
    driver.train("00001", 40)
    driver.folder.steps.write(TrialsAdvanced(study="s", steps={"00000": 33, "00001": 47}))
    with driver.folder.lock():
        rows = {row.trial_id: (row.state, row.step) for row in loraxs_search.status("s").trials}
        assert rows == {"00000": ("RUNNING", 33), "00001": ("RUNNING", 47)}
        driver.end("00000", TrialState.PRUNED)
        driver.journal.phase("training the best trial again")
        driver.journal.counted(20, 40, "steps")
        assert "now: training the best trial again: 20 of 40 steps" in say("status", "s").err


def untimed(events: list[ShownEvent]) -> list[ShownEvent]:
    """A phase is told to the view and to the journal one after the other, a moment apart."""
    return [replace(event, at=0.0) if event.event == "phase" else event for event in events]


def test_a_follower_gets_the_events_that_the_launch_tells():
    driver = ScriptedDriver(study("mine"))
    follower, seen = StudyEvents(driver.folder), []
    with driver.folder.lock():
        assert follower.new() == []
        driver.begin()
        seen += follower.new()
        assert [event.event for event in seen] == ["search_started"]
        driver.train("00000", 40)
        driver.train("00001", 20)
        seen += follower.new()
        driver.end("00001", TrialState.PRUNED)
        driver.end("00000", TrialState.COMPLETE)
        driver.finish()
        seen += follower.new()
        assert seen[-1].event == "candidate_scored"
    (last,) = follower.new()
    told = [event for event in driver.seen if getattr(event, "text", "") != "writing the last records to MLflow"]
    assert untimed(seen) == untimed(told)
    assert untimed(list(watch("mine", sleep=never))) == untimed([*told, last])
    assert isinstance(last, SearchEnded)
    assert last.state == "finished"


def test_a_follower_learns_how_far_trials_are_between_reports():
    driver = ScriptedDriver(study("mine"))
    folder = driver.folder
    stale = TrialsAdvanced(study="mine", at=1.0, steps={"00000": 99})
    folder.steps.write(stale)  # by an earlier driver
    follower = StudyEvents(folder)
    with folder.lock():
        driver.begin()
        driver.train("00000", 40)
        assert "trials_advanced" not in [event.event for event in follower.new()]
        now = replace(stale, at=time.time() + 1, steps={"00000": 47})
        folder.steps.write(now)
        assert follower.new() == [now]
        assert follower.new() == []


def never(_: float) -> None:
    raise AssertionError("there is nothing to wait for")


def test_a_driver_that_was_killed_has_interrupted_its_study():
    driver = ScriptedDriver(study("mine"))
    driver.begin()
    driver.train("00000", 20)
    follower = StudyEvents(driver.folder)
    assert [event.event for event in follower.new()] == ["search_started", "started", "reported"]
    (last,) = follower.new()
    assert isinstance(last, SearchEnded)
    assert last.state == "interrupted"


def test_a_study_that_goes_on_while_it_is_watched_has_not_ended():
    driver = ScriptedDriver(study("mine"))
    follower = StudyEvents(driver.folder)
    assert follower.new() == [], "its driver may be about to begin"
    with driver.folder.lock():
        driver.begin()
        assert len(follower.new()) == 1
    assert follower.new() == []
    with driver.folder.lock():
        assert follower.new() == []
    assert follower.new() == []
    assert len(follower.new()) == 1


def test_a_damaged_journal_is_said_with_its_place():
    folder = searched("damaged", [Tried({"rank": 4}, 0.8)])
    whole = folder.journal_path.stat().st_size
    with folder.journal_path.open("a") as file:
        file.write('{"event": "phase", "at": 1.0}\n')
    with pytest.raises(StudyError, match=f"is damaged at byte {whole}"):
        list(watch("damaged", sleep=never))


def test_watching_from_another_process_loads_nothing_heavy():
    searched("mine", [Tried({"rank": 4}, 0.8)])
    program = """
        import sys, loraxs_search
        print([event.event for event in loraxs_search.watch("mine")][-1])
        print([name for name in ("torch", "ray", "mlflow", "transformers", "peft", "optuna") if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.splitlines() == ["search_ended", "[]"]
