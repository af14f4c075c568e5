"""`status` from Python: a study as the command line shows it, and all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.said import Said
from support.scripted_driver import ScriptedDriver
from support.searched_studies import Tried, searched
from support.studies import study

import loraxs_search
from loraxs_search.errors import StudyError
from loraxs_search.records import SteeringStatus, TrialState, to_json

TRIALS = (Tried({"rank": 4, "learning_rate": 1e-3}, 0.7), Tried({"rank": 8, "learning_rate": 1e-3}, 0.9))


def test_it_is_what_the_command_line_prints(fresh_home: Path, say: Callable[..., Said]) -> None:
    searched("s", TRIALS)
    status = loraxs_search.status("s")
    assert json.loads(say("status", "s", "--json").ok) == json.loads(to_json(status))
    assert [row.trial_id for row in status.trials] == ["00001", "00000"]
    assert (status.progress.ended, status.paused, status.commands, status.place) == (2, [], [], "")


def test_without_a_name_it_lists_all_studies(fresh_home: Path) -> None:
    assert loraxs_search.status() == []
    searched("s", TRIALS)
    (summary,) = loraxs_search.status()
    assert (summary.study, summary.trials) == ("s", "2/2")
    with pytest.raises(StudyError):
        loraxs_search.status("t")


def test_a_running_search_stands_as_live_views_draw_it(fresh_home: Path, say: Callable[..., Said]) -> None:
    driver = ScriptedDriver(study("s"))
    driver.begin()
    driver.train("00000", 20)
    driver.train("00001", 40)
    paused = SteeringStatus(("00000",))
    driver.say.steered("pause 00000: it pauses", paused)
    driver.say.advanced(driver.folder, {"00000": 33, "00001": 47})
    with driver.folder.lock():
        rows = {row.trial_id: (row.state, row.step) for row in loraxs_search.status("s").trials}
        assert rows == {"00000": ("PAUSED", 33), "00001": ("RUNNING", 47)}
        driver.end("00000", TrialState.PRUNED)
        driver.say.phase("training the best trial again")
        driver.say.counted(20, 40, "steps")
        assert "now: training the best trial again: 20 of 40 steps" in say("status", "s").err
