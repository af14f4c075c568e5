"""Which run is whose, as it is remembered on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraxs_search.errors import HomeError, StudyError
from loraxs_search.tracking._runs import StudyRuns


def test_a_run_that_could_not_be_written_down_is_found_and_not_made_again(
    tmp_path: Path, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = StudyRuns(store_uri, study="s", study_id="s-1", experiment="e", map_path=tmp_path / "runs.jsonl")
    runs.connect()
    put = runs._map.put
    full = HomeError("No space left to write it.", hint="free some space")

    def failing(*_: object) -> None:
        raise full

    runs.run("", 1.0)
    monkeypatch.setattr(runs._map, "put", failing)
    for _ in range(3):
        with pytest.raises(HomeError):
            runs.run("t0", 1.0)
    monkeypatch.setattr(runs._map, "put", put)
    run_id = runs.run("t0", 1.0)
    experiment = runs.client.get_run(run_id).info.experiment_id
    assert [run.info.run_id for run in runs.client.search_runs([experiment], "tags.trial_id = 't0'")] == [run_id]


def test_a_run_of_a_trial_that_was_lost_with_a_log_is_not_that_of_the_next_one_of_its_number(
    tmp_path: Path, store_uri: str
) -> None:
    """A machine told MLflow of t1 and was lost before t1 was in the copy that another one goes on from."""
    path = tmp_path / "runs.jsonl"

    def opened(*known: str, is_ours: bool = True) -> StudyRuns:
        map_path, mine = path, lambda: is_ours
        runs = StudyRuns(store_uri, study="s", study_id="s-1", experiment="e", map_path=map_path, is_ours=mine)
        runs.connect()
        runs.doubt(known)
        return runs

    first = opened()
    search, kept, lost = first.run("", 1.0), first.run("t0", 2.0), first.run("t1", 3.0)
    killed_early = opened("t0")  # the copied map is ahead of the copied log
    assert killed_early.known("t1") is None
    with pytest.raises(StudyError, match="may have been taken over"):
        opened("t0", "t1", is_ours=False).run("t1", 6.0)
    third = opened("t0", "t1")  # by now the log knows the new t1
    assert (third.run("", 5.0), third.run("t0", 2.0)) == (search, kept)
    new = third.run("t1", 6.0)
    assert new != lost
    run = third.client.get_run(lost)
    assert (run.info.status, run.data.tags["trial_id"]) == ("KILLED", "t1, lost with the log of another machine")
    path.unlink()
    assert opened("t0", "t1").run("t1", 6.0) == new
