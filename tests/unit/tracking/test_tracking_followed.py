"""The log as MLflow follows it, from an offset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loraxs_search.log.events import (
    TrialStarted,
)
from loraxs_search.records.trial import TrialReport
from loraxs_search.studies.journal import Journal
from loraxs_search.tracking.followed import FollowedLog, has_waiting

Report = Callable[..., TrialReport]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def test_events_are_read_in_order_from_any_offset_on(journal: Journal, tmp_path: Path) -> None:
    followed = FollowedLog("s", tmp_path)
    for number in range(5):
        journal.append(TrialStarted(trial_id=f"t{number}", params={}))
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
    journal.append(TrialStarted(trial_id="t0", params={}))
    (tmp_path / "mlflow.offset").write_text(offset)
    followed = FollowedLog("s", tmp_path)
    assert 0 <= followed.applied <= followed.end == journal_size(tmp_path)


def test_after_a_power_cut_all_is_read_again_where_the_offset_lies_within_a_line(
    journal: Journal, tmp_path: Path
) -> None:
    """The offset was on the device, and of the last lines a part."""
    journal.append(TrialStarted(trial_id="t0", params={}))
    journal.append(TrialStarted(trial_id="t1", params={}))
    path = tmp_path / "journal.jsonl"
    (tmp_path / "mlflow.offset").write_text(str(journal_size(tmp_path)))
    path.write_bytes(path.read_bytes()[:-9])
    followed = FollowedLog("s", tmp_path)
    Journal(path).append(TrialStarted(trial_id="t1", params={"rank": 4}))
    assert [event.trial_id for event in followed.read(10).events if isinstance(event, TrialStarted)] == ["t0", "t1"]


def test_a_line_torn_by_a_kill_is_waited_for_by_nobody(journal: Journal, tmp_path: Path) -> None:
    journal.append(TrialStarted(trial_id="t0", params={}))
    whole = journal_size(tmp_path)
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"event": "star')
    followed = FollowedLog("s", tmp_path)
    followed.commit(followed.read(10))
    assert followed.applied == followed.end == whole
    assert not has_waiting(tmp_path)
