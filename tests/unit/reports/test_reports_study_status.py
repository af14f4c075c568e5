"""`status` from Python: a study as the command line shows it, and all of them.

Who follows a study from its folder learns what its launch says, in the same words, and when it ends.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from support.searched_studies import ScriptedDriver, Tried, searched
from support.studies import study

import loraxs_search
from loraxs_search.errors import StudyError
from loraxs_search.log.events import Phase, SearchEnded, ShownEvent, TrialsAdvanced
from loraxs_search.records.codec import to_json
from loraxs_search.records.trial import TrialState
from loraxs_search.reports.study_status import watch

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
        driver.journal.phase(done=20, total=40, unit="steps")
        assert "now: training the best trial again: 20 of 40 steps" in say("status", "s").err


def untimed(events: list[ShownEvent]) -> list[ShownEvent]:
    """A phase is told to the view and to the journal one after the other, a moment apart."""
    return [replace(event, at=0.0) if isinstance(event, Phase) else event for event in events]


def kinds(events: list[ShownEvent]) -> list[str]:
    return [type(event).__name__ for event in events]


def followed(*acts: Callable[[], object]) -> list[list[ShownEvent]]:
    """Return what `watch` yields of a study before and after each of these, which happen while it waits."""
    looks, left = [list[ShownEvent]()], iter(acts)

    def meanwhile(_: float) -> None:
        next(left)()
        looks.append([])

    for event in watch("mine", sleep=meanwhile):
        looks[-1].append(event)
    assert not list(left)
    return looks


def test_a_follower_gets_the_events_that_the_launch_tells():
    driver, held = ScriptedDriver(study("mine")), contextlib.ExitStack()
    held.enter_context(driver.folder.lock())

    def train() -> None:
        driver.train("00000", 40)
        driver.train("00001", 20)

    def finish() -> None:
        driver.end("00001", TrialState.PRUNED)
        driver.end("00000", TrialState.COMPLETE)
        driver.finish()

    looks = followed(driver.begin, train, finish, held.close)
    assert list(map(kinds, looks[:2])) == [[], ["SearchStarted"]]
    *seen, last = (event for look in looks for event in look)
    told = [event for event in driver.seen if getattr(event, "text", "") != "writing the last records to MLflow"]
    assert untimed(seen) == untimed(told)
    assert untimed(list(watch("mine", sleep=never))) == untimed([*told, last])
    assert isinstance(last, SearchEnded)
    assert last.state == "finished"


def test_a_follower_learns_how_far_trials_are_between_reports_and_that_a_killed_driver_goes_no_further():
    driver, held = ScriptedDriver(study("mine")), contextlib.ExitStack()
    stale = TrialsAdvanced(study="mine", at=1.0, steps={"00000": 99})
    driver.folder.steps.write(stale)  # by an earlier driver
    held.enter_context(driver.folder.lock())
    driver.begin()
    driver.train("00000", 40)
    now = replace(stale, at=time.time() + 1, steps={"00000": 47})
    first, second, third, *killed = followed(
        lambda: driver.folder.steps.write(now), lambda: None, held.close, lambda: None
    )
    assert kinds(first) == ["SearchStarted", "TrialStarted", "TrialReported", "TrialReported"]
    assert (second, third, killed[0]) == ([now], [], [])
    (last,) = killed[1]
    assert isinstance(last, SearchEnded)
    assert last.state == "interrupted"


def never(_: float) -> None:
    raise AssertionError("there is nothing to wait for")


def test_a_study_that_goes_on_while_it_is_watched_has_not_ended():
    driver, held = ScriptedDriver(study("mine")), contextlib.ExitStack()

    def begin() -> None:  # nobody has held it before
        held.enter_context(driver.folder.lock())
        driver.begin()

    def lock() -> object:
        return held.enter_context(driver.folder.lock())

    looks = followed(begin, held.close, lock, held.close, lambda: None)
    assert list(map(kinds, looks)) == [[], ["SearchStarted"], [], [], [], ["SearchEnded"]]
