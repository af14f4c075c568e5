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


def test_studies_are_listed_as_status_lists_them(say, reviews):
    listed, status = say("studies", "ls").ok.splitlines(), say("status").ok.splitlines()
    assert [line.split()[:4] for line in listed[1:]] == [line.split()[:4] for line in status[1:]]
    assert listed[0].split() == ["study", "task", "state", "trials", "created", "bytes", "for", "MLflow"]
    (facts,) = json.loads(say("studies", "ls", "--json").ok)
    assert facts["path"] == str(reviews.path)
    assert facts["num_bytes"] > 0
    assert json.loads(say("status", "--json").ok)[0] == {
        name: facts[name] for name in ("study", "task", "state", "trials", "created")
    }


def test_a_damaged_study_is_listed(say, reviews):
    (reviews.path / "study.json").write_text("{")
    said = say("studies", "ls")
    assert "unreadable" in said.ok
    assert "A study's files must be whole" in said.err


def test_a_study_is_shown_with_where_it_lies(say, reviews):
    said = say("studies", "show", "reviews")
    assert f"path          {reviews.path}\n" in said.ok
    assert "loraxs-search studies export reviews --optuna FILE\n" in said.err
    assert json.loads(say("studies", "show", "reviews", "--json").ok)["path"] == str(reviews.path)
    assert say("studies", "show", "revews").is_error(1, "`study` must be one of: reviews")


def test_of_several_studies_none_goes_where_one_is_refused(say, reviews):
    assert say("studies", "rm", "reviews", "revews").is_error(1, "but got 'revews'")
    assert reviews.path.is_dir()


def test_what_stays_of_a_study_that_cannot_be_read_is_said(say, reviews):
    (reviews.path / "study.json").unlink()
    listed = say("studies", "ls")
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
    for name in ("rows/a.arrow", "rows/b.arrow"):
        write_atomic(fresh_home / "datasets" / name, "x" * 10_000)
    age(fresh_home / "datasets" / "rows" / "a.arrow")
    planned = say("gc", "--dry-run")
    (row,) = (line for line in planned.ok.splitlines() if line.startswith("rows and tokens"))
    assert row.split()[3:7] == ["1", "12.3", "KB", "1"]
    assert "would free 12.3 KB" in planned.err
    assert "kept: 1 of rows and tokens, used not long ago" in planned.err
    assert (fresh_home / "datasets" / "rows" / "a.arrow").exists()
    done = json.loads(say("gc", "--json").ok)
    assert [item["path"] for item in done if not item["kept"]] == [str(fresh_home / "datasets" / "rows" / "a.arrow")]
    assert "freed 12.3 KB" not in say("gc").err
    assert say("gc", "--older-than", "0d").ok
    assert not (study.path / "snapshots" / "00000.safetensors").exists()
    assert say("gc", "--older-than", "soon").is_error(2, "must be a number with a unit, but got 'soon'")


def test_sizes_are_short():
    assert [shown_bytes(size) for size in (999, 1_234_567, 999_600)] == ["999 B", "1.23 MB", "1 MB"]


# ---- estimates -------------------------------------------------------------------------------------------------------
@pytest.fixture
def measured(monkeypatch):
    """Have the machine be measured at once: a tenth of a second a step."""
    from loraxs_search.search.driver import check as estimate

    fast = estimate.Measured("cpu", 6, 5, 0.1, 1.0, 0.0, 10.0)
    monkeypatch.setattr(estimate, "_measure", lambda *_: fast)


def test_launch_says_beforehand_what_check_says(say, tiny_space, measured, fresh_home):
    dry = say("launch", str(tiny_space), "--dry-run", "--name", "new").ok
    assert say("check", str(tiny_space), "--data").ok.splitlines()[:5] == dry.splitlines()[:5]
    assert "\nestimate    about " in dry
    assert " on this machine, " in dry
    assert "\nmeasured    5 steps and a scoring of 6 drawn trials at once on cpu: 0.1 s a step, " in dry
    assert "\nrows   " in dry
    assert not (fresh_home / "studies").exists()
    described = json.loads(say("launch", str(tiny_space), "--dry-run", "--json").ok)
    assert described["estimate"]["num_refits"] == 2
    assert described["estimate"]["measured"]["step_s"] == 0.1


def test_a_dry_run_refuses_what_launch_would_and_what_it_cannot_check(say, tiny_space, reviews, measured):
    dry = ("launch", str(tiny_space), "--dry-run")
    assert say(*dry, "--name", "reviews").is_error(1, "already exists")
    assert say(*dry, str(tiny_space)).is_error(2, "must go with one space")
    assert say(*dry, "--address", "bad:1").is_error(2, "loraxs-search doctor SPACE --address")
    away = "http://127.0.0.1:9"
    assert say(*dry, "--tracking-uri", away).is_error(1, f"The MLflow server at {away} must be reachable")
    assert say(*dry, "--set", "start_from=other").is_error(1, "There is no task yet, but got 'other'")


def test_a_dry_run_looks_for_the_name_in_the_storage_and_leaves_nothing(
    say, tiny_space, measured, tmp_path, fresh_home
):
    taken = tmp_path / "share" / "taken" / "study.json"
    taken.parent.mkdir(parents=True)
    taken.write_text("{}")
    line = ("launch", str(tiny_space), "--dry-run", "--storage", str(tmp_path / "share"))
    assert say(*line, "--name", "taken").is_error(1, "Study 'taken' already exists in ")
    assert "\nestimate    about " in say(*line, "--name", "new").ok
    assert [path for path in (tmp_path / "share").rglob("*") if path.is_file()] == [taken]
    assert not (fresh_home / "studies").exists()
    assert not (fresh_home / "mlflow.db").exists()
