"""The log as MLflow follows it: from an offset, and with what older versions had beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tracked import Tracked

from loraxs_search.log.events import (
    AdapterWritten,
    DriverStarted,
    ReportWritten,
    TrialEnded,
    TrialReported,
    TrialStarted,
)
from loraxs_search.records import Hyperparameters, SearchPlan, SearchRun, TrialReport, TrialState, to_json
from loraxs_search.studies import Journal
from loraxs_search.tracking.followed import FollowedLog, has_waiting

Report = Callable[..., TrialReport]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def test_events_are_read_in_order_from_any_offset_on(journal: Journal, tmp_path: Path) -> None:
    followed = FollowedLog("s", tmp_path)
    for number in range(5):
        journal.trial_started(f"t{number}", {})
    first = followed.read(2)
    assert [event.trial_id for event in first.events if isinstance(event, TrialStarted)] == ["t0", "t1"]
    assert followed.applied == 0, "nothing is said to be there before it is"
    followed.commit(first)
    again = FollowedLog("s", tmp_path)
    rest = again.read(100)
    assert [event.trial_id for event in rest.events if isinstance(event, TrialStarted)] == ["t2", "t3", "t4"]
    again.commit(rest)
    assert again.applied == again.end == journal_size(tmp_path)
    assert again.study_id == followed.study_id


def journal_size(folder: Path) -> int:
    return (folder / "journal.jsonl").stat().st_size


@pytest.mark.parametrize("offset", ["garbage", "-3", "999999", ""])
def test_a_wrong_offset_is_put_inside_the_log(offset: str, journal: Journal, tmp_path: Path) -> None:
    journal.trial_started("t0", {})
    (tmp_path / "mlflow.offset").write_text(offset)
    followed = FollowedLog("s", tmp_path)
    assert 0 <= followed.applied <= followed.end == journal_size(tmp_path)


def test_after_a_power_cut_all_is_read_again_where_the_offset_lies_within_a_line(
    journal: Journal, tmp_path: Path
) -> None:
    """The offset was on the device, and of the last lines a part."""
    journal.trial_started("t0", {})
    journal.trial_started("t1", {})
    path = tmp_path / "journal.jsonl"
    (tmp_path / "mlflow.offset").write_text(str(journal_size(tmp_path)))
    path.write_bytes(path.read_bytes()[:-9])
    followed = FollowedLog("s", tmp_path)
    Journal(path).trial_started("t1", {"rank": 4})
    assert [event.trial_id for event in followed.read(10).events if isinstance(event, TrialStarted)] == ["t0", "t1"]


def test_a_line_torn_by_a_kill_is_waited_for_by_nobody(journal: Journal, tmp_path: Path) -> None:
    journal.trial_started("t0", {})
    whole = journal_size(tmp_path)
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"event": "star')
    followed = FollowedLog("s", tmp_path)
    followed.commit(followed.read(10))
    assert followed.applied == followed.end == whole
    assert not has_waiting(tmp_path)


# ---- what older versions had beside the log --------------------------------------------------------------------------
def earlier(report: Report, hyperparameters: Hyperparameters) -> list[dict[str, Any]]:
    """Return the lines of a `tracking.jsonl` in which a trial has one of its two reports."""
    return [
        {
            **{"event": "search_started", "at": 1.0, "space_yaml": "task: {}\n", "params": {"seed": 1}, "tags": {}},
            **{"plan": json.loads(to_json(SearchPlan(trials=3))), "facts": None},
        },
        {
            **{"event": "trial_started", "at": 2.0, "trial_id": "t0", "params": {"rank": 4}, "tags": {}},
            **{"hyperparameters": json.loads(to_json(hyperparameters))},
        },
        {"event": "trial_reported", "at": 3.0, "report": json.loads(to_json(report("t0", 40))), "first": True},
    ]


def lines(events: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(event)}\n" for event in events)


@pytest.fixture
def older(journal: Journal, tmp_path: Path, report: Report, hyperparameters: Hyperparameters) -> Path:
    """A study of a driver that was killed before MLflow's file had the second report, which the log has."""
    (tmp_path / "tracking.jsonl").write_text(lines(earlier(report, hyperparameters)))
    journal.trial_started("t0", {"rank": 4})
    for step in (40, 80):
        journal.trial_reported(report("t0", step))
    return tmp_path


def test_what_waits_there_comes_first_and_then_of_the_log_what_it_lacks(
    older: Path, hyperparameters: Hyperparameters
) -> None:
    followed = FollowedLog("s", older)
    first = followed.read(10)
    run, started, reported = first.events
    assert isinstance(run, DriverStarted)
    assert run.run == SearchRun("task: {}\n", SearchPlan(trials=3), {"seed": 1})
    assert isinstance(started, TrialStarted)
    assert (started.params, started.hyperparameters) == ({"rank": 4}, hyperparameters)
    assert isinstance(reported, TrialReported)
    followed.commit(first)
    second = followed.read(10)
    assert [event.report.step for event in second.events if isinstance(event, TrialReported)] == [80]
    followed.commit(second)
    assert followed.applied == followed.end
    assert FollowedLog("s", older).applied == followed.end


def test_the_rest_of_its_kinds_are_those_of_the_log(tmp_path: Path) -> None:
    ended = {"event": "trial_finished", "at": 4.0, "trial_id": "t0", "state": "COMPLETE", "reason": "so", "wall_s": 9.0}
    adapter = {"event": "adapter_logged", "at": 5.0, "trial_id": "t0", "folder": "/somewhere/adapters/t0"}
    report = {"event": "report_written", "at": 5.5, "path": "/somewhere/report.html"}
    finished = {"event": "search_finished", "at": 6.0, "state": "FINISHED", "summary": {"wall_s": 1.0}}
    (tmp_path / "tracking.jsonl").write_text(lines([ended, {"event": "unheard of"}, adapter, report, finished]))
    first, second, third, fourth = FollowedLog("s", tmp_path).read(10).events
    assert first == TrialEnded(at=4.0, trial_id="t0", state=TrialState.COMPLETE, reason="so")
    assert second == AdapterWritten(at=5.0, trial_id="t0", folder="adapters/t0"), "wherever the study lies now"
    assert third == ReportWritten(at=5.5, path="report.html")
    assert fourth.event == "search_finished"


def test_mlflow_gets_each_point_once(older: Path, look: Callable[..., Any], store_uri: str) -> None:
    for _ in range(2):
        with Tracked("s", older, store_uri, "exp") as tracked:
            assert tracked.flush(60)
        assert look().points["t0"]["accuracy"] == [(40, 0.5), (80, 0.5)]
    assert look().children["t0"].data.params["lr_schedule"] == "linear", "resolved by the older version"


def test_of_an_older_version_only_its_own_file_waits(older: Path) -> None:
    (older / "tracking.id").write_text("s-1234")
    assert has_waiting(older)
    (older / "tracking.offset").write_text(str((older / "tracking.jsonl").stat().st_size))
    assert not has_waiting(older), "nobody has gone on with it since"
    (older / "mlflow.offset").write_text("0")
    assert has_waiting(older)


def test_what_a_driver_adds_to_a_study_of_an_older_version_waits(older: Path) -> None:
    """MLflow may be away from its beginning to its end."""
    (older / "tracking.offset").write_text(str((older / "tracking.jsonl").stat().st_size))
    FollowedLog("s", older)
    Journal(older / "journal.jsonl").search_finished("KILLED")
    assert has_waiting(older)
