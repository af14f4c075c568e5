"""`studies` and `gc` on the command line."""

from __future__ import annotations

import json

import pytest
from support.aged import age
from support.searched_studies import Tried, searched
from support.studies import state

from loraxs_search.cli._out import shown_bytes
from loraxs_search.home import write_atomic
from loraxs_search.records.trial import TrialState


@pytest.fixture
def reviews(store_uri):
    return searched("reviews", [Tried({"rank": 2}, 0.8), Tried({"rank": 4}, 0.9)])


def test_of_several_studies_none_goes_where_one_is_refused(say, reviews):
    assert say("studies", "rm", "reviews", "revews").is_error(1, "but got 'revews'")
    assert reviews.path.is_dir()


def test_what_stays_of_a_study_that_cannot_be_read_is_said(say, reviews):
    (reviews.path / "study.json").unlink()
    listed = say("status")
    assert listed.ok.splitlines()[1].split()[:3] == ["reviews", "-", "incomplete"]
    assert "`loraxs-search studies rm reviews --force`" in listed.err
    assert say("studies", "rm", "reviews").is_error(1, "has none.", "--force")
    assert say("studies", "rm", "reviews", "--force", "--dry-run").ok.startswith("reviews: would be removed, ")
    removed = say("studies", "rm", "reviews", "--force")
    assert removed.ok.startswith("reviews: removed, ")
    assert "its runs in MLflow and a copy in a storage stay" in removed.err


def test_gc_says_what_goes_what_stays_and_why(say, store_uri, fresh_home):
    study = searched("reviews", [Tried({"rank": 2}, 0.8, state=TrialState.PRUNED), Tried({"rank": 4}, 0.9)])
    study.snapshots.write("00000", state("00000"))
    tokens = fresh_home / "datasets" / "tokens"
    for name in "ab":
        write_atomic(tokens / f"{name}.safetensors", "x" * 10_000)
    age(tokens / "a.safetensors")
    planned = say("gc", "--dry-run")
    (row,) = (line for line in planned.ok.splitlines() if line.startswith("rows and tokens"))
    assert row.split()[3:7] == ["1", "12.3", "KB", "1"]
    assert "would free 12.3 KB" in planned.err
    assert "kept: 1 of rows and tokens, used not long ago" in planned.err
    assert (tokens / "a.safetensors").exists()
    done = json.loads(say("gc", "--json").ok)
    assert [item["path"] for item in done if not item["kept"]] == [str(tokens / "a.safetensors")]
    assert "freed 12.3 KB" not in say("gc").err
    assert say("gc", "--older-than", "0d").ok
    assert not (study.path / "snapshots" / "00000.safetensors").exists()
    assert say("gc", "--older-than", "soon").is_error(2, "must be a number with a unit, but got 'soon'")


def test_sizes_are_short():
    assert [shown_bytes(size) for size in (999, 1_234_567, 999_600)] == ["999 B", "1.23 MB", "1 MB"]
