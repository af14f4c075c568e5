from __future__ import annotations

import json

import pytest
from faults import disks

from loraxs_search.errors import HomeError, StudyError
from loraxs_search.records import SearchPlan, TrialState
from loraxs_search.tracking._spool import Spool
from loraxs_search.tracking.events import (
    AdapterLogged,
    SearchFinished,
    SearchStarted,
    TrialFinished,
    TrialReported,
    TrialStarted,
    from_line,
    to_line,
)


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "study")
    yield spool
    spool.close()


def _ended(trial_id: str) -> TrialFinished:
    return TrialFinished(1.5, trial_id, TrialState.COMPLETE, "ran all steps", 2.0, 1.0)


def test_every_kind_of_event_survives_its_line(hyperparameters, report):
    events = [
        SearchStarted(1.0, "task: {}\n", SearchPlan(trials=3), {"seed": 1, "name": "x", "fast": True}, {"a": "b"}),
        TrialStarted(1.0, "t0", {"rank": 4, "lr": 0.1, "on": False}, hyperparameters),
        TrialReported(1.0, report("t0", 40), first=True),
        _ended("t0"),
        AdapterLogged(1.0, "t0", "/somewhere"),
        SearchFinished(1.0, "KILLED", {"best": 0.5, "why": "interrupted"}),
    ]
    for event in events:
        line = to_line(event)
        assert line.count(b"\n") == 1
        assert from_line(line) == event


def test_a_line_of_version_0_1_0_is_read(hyperparameters):
    """It held tags of a trial, which were always empty."""
    event = TrialStarted(1.0, "t0", {"rank": 4}, hyperparameters)
    assert from_line(json.dumps(json.loads(to_line(event)) | {"tags": {}}).encode()) == event


def test_events_are_read_in_order_from_any_entry_on(spool):
    events = [_ended(f"t{n}") for n in range(5)]
    for event in events:
        spool.append(event)
    first = spool.read(0, 2)
    assert [entry.event for entry in first] == events[:2]
    rest = spool.read(first[-1].end, 100)
    assert [entry.event for entry in rest] == events[2:]
    assert rest[-1].end == spool.size


def test_the_offset_is_found_again(tmp_path):
    spool = Spool(tmp_path)
    spool.append(_ended("t0"))
    spool.commit(spool.size)
    spool.close()
    again = Spool(tmp_path)
    assert again.offset == again.size > 0
    again.close()


@pytest.mark.parametrize("offset", ["garbage", "-3", "999999", ""])
def test_a_wrong_offset_is_put_inside_the_file(tmp_path, offset):
    (tmp_path / "tracking.offset").write_text(offset)
    spool = Spool(tmp_path)
    assert 0 <= spool.offset <= spool.size
    spool.close()


@pytest.mark.parametrize("kept_bytes", [1, 20, -2, -1])
def test_a_line_torn_by_a_kill_is_cut_off(tmp_path, kept_bytes):
    whole, torn = to_line(_ended("t0")), to_line(_ended("t1"))
    (tmp_path / "tracking.jsonl").write_bytes(whole + torn[:kept_bytes])
    spool = Spool(tmp_path)
    spool.append(_ended("t2"))
    assert [entry.event for entry in spool.read(0, 10)] == [_ended("t0"), _ended("t2")]
    spool.close()


def test_a_damaged_line_in_the_middle_is_passed_over(tmp_path, caplog):
    (tmp_path / "tracking.jsonl").write_bytes(b'{"event": "unheard of"}\n' + to_line(_ended("t0")))
    spool = Spool(tmp_path)
    entries = spool.read(0, 10)
    assert [entry.event for entry in entries] == [None, _ended("t0")]
    assert "no event" in caplog.text
    spool.close()


def test_a_spool_has_one_owner(spool):
    with pytest.raises(StudyError, match="must have one writer"):
        Spool(spool.path.parent)


def test_a_closed_spool_can_be_opened_again_with_the_same_study_id(spool):
    spool.close()
    again = Spool(spool.path.parent)
    assert again.study_id == spool.study_id
    again.close()


def test_an_event_that_a_full_disk_did_not_take_leaves_nothing_behind(tmp_path):
    if reason := disks.no_mounts(tmp_path):
        pytest.skip(reason)
    long = TrialFinished(1.5, "long", TrialState.FAIL, "x" * 20_000, 2.0, 1.0)
    with disks.disk(tmp_path / "small", 1) as disk:
        spool = Spool(disk.path / "study")
        spool.append(_ended("before"))
        disk.fill()
        with pytest.raises(HomeError, match="No space left"):
            spool.append(long)
        disk.free()
        spool.append(_ended("after"))
        assert [event.trial_id for event in spool.history()] == ["before", "after"]
        assert spool.size == spool.path.stat().st_size
        spool.close()
