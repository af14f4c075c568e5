"""Whatever is wrong with a request is told in one form, and nothing is left behind."""

from __future__ import annotations

import socket

import pytest

from loraxs_search.studies.folder import list_studies


@pytest.fixture(autouse=True)
def nothing_is_left_behind(fresh_home):
    yield
    assert list_studies() == []


# ---- the space and its rows ------------------------------------------------------------------------------------------
def test_a_space_that_does_not_fit_its_base_or_its_rows(say, tiny_space):
    check, column = ("check", str(tiny_space), "--data"), ("--set", "task.columns.text=sentense")
    rank = "`rank` must be in 1..32, but got rank=500 for bert.encoder.layer.0."
    assert say(*check, "--set", "parameters.rank=500").is_error(2, rank)
    said = say(*check, "--set", "base_model=org/nowhere", *column)
    assert said.is_error(1, "'org/nowhere' was not found", "`package`", "but got 'sentense'")
    said = say(*check, "--set", "parameters.target_modules=atention", *column)
    assert said.is_error(2, "but got 'atention'", "but got 'sentense'")


# ---- what must answer, and names -------------------------------------------------------------------------------------
def test_what_is_not_there(say):
    assert say("pull", "movie-reviews", "--tracking-uri", "http://127.0.0.1:9").is_error(1, "--tracking-uri")
    assert say("launch", "movie_reviews", "--name", "../up").is_error(1, "but got '../up'", "--name")


def test_what_is_not_there_where_mlflow_is(say, store_uri):
    said = say("launch", "movie_reviews", "--address", "127.0.0.1:1")
    assert said.is_error(1, "luster at 127.0.0.1:1 must", "Connection refused")
    assert say("pull", "movie-reviews").is_error(1, "There is no task yet, but got 'movie-reviews'")


def test_a_home_that_is_a_file(say, fresh_home):
    fresh_home.write_text("not a folder")
    assert say("launch", "movie_reviews").is_error(1, "must be writable", "LORAXS_HOME")
    assert fresh_home.read_text() == "not a folder"


def test_a_port_that_is_taken(say, store_uri):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert say("ui", "--port", str(taken.getsockname()[1])).is_error(1, "must be free", "--port")


def test_an_account_in_an_address_is_refused_and_not_shown(say):
    for address in (["http://me:secret@a.example"], ["--tracking-uri", "http://me:secret@a.example"]):
        refused = say("ls", *address)
        assert refused.code != 0
        assert "secret" not in refused.out + refused.err
