from __future__ import annotations

import os
from pathlib import Path

import pytest

from loraxs_search.errors import LoraxsError, TrackingError
from loraxs_search.mlflow_uri import artifact_root, redact, resolve_uri, sqlite_path, without_account
from loraxs_search.studies import Storage


def test_without_anything_the_store_is_in_the_state_folder(fresh_home):
    uri = resolve_uri(None)
    assert sqlite_path(uri) == fresh_home / "mlflow.db"
    assert artifact_root(uri) == fresh_home / "artifacts"


def test_the_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment:5000/")
    assert resolve_uri(None) == "http://from-environment:5000"
    assert resolve_uri("https://from-argument") == "https://from-argument"


def test_a_relative_database_is_the_same_one_in_every_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sqlite_path(resolve_uri("sqlite:///runs.db")) == tmp_path / "runs.db"


@pytest.mark.parametrize(
    "uri", ["postgresql://u:secret@db/runs", "./mlruns", "sqlite://", "sqlite:///:memory:", "ftp://x"]
)
def test_other_kinds_of_store_are_refused(uri):
    with pytest.raises(TrackingError) as refused:
        resolve_uri(uri)
    assert "secret" not in str(refused.value)


# ---- accounts --------------------------------------------------------------------------------------------------------
def account() -> tuple[str | None, str | None]:
    return os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")


def test_an_account_in_an_address_is_taken_out_of_it_and_becomes_mlflows_own_variables():
    assert resolve_uri("https://me:p%40ss@mlflow.example:5000/below/") == "https://mlflow.example:5000/below"
    assert account() == ("me", "p@ss")
    assert resolve_uri("https://mlflow.example:5000/below") == "https://mlflow.example:5000/below"
    assert account() == ("me", "p@ss"), "the same server, as a study names it"


def test_a_user_alone_goes_with_the_password_of_the_environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "100%25")
    assert resolve_uri("https://me@mlflow.example") == "https://mlflow.example"
    assert account() == ("me", "100%25"), "variables are taken as they are"


def test_an_account_goes_to_the_server_that_it_was_given_for(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "everywhere")
    resolve_uri("https://me:secret@one.example")
    assert account() == ("me", "secret")
    resolve_uri("https://two.example")
    assert account() == ("everywhere", None)


def test_an_account_is_remembered_for_its_server_and_for_no_other_one():
    resolve_uri("https://me:secret@one.example")
    resolve_uri("https://you:other@two.example")
    for server, expected in (("one", ("me", "secret")), ("three", (None, None)), ("two", ("you", "other"))):
        resolve_uri(f"https://{server}.example")
        assert account() == expected


def test_a_study_that_names_its_server_gets_the_account_of_the_environments_address(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example/")
    resolve_uri("https://other.example")
    assert account() == (None, None)
    resolve_uri("https://mlflow.example")
    assert account() == ("me", "secret")


@pytest.mark.parametrize("odd", [*"/?#[]\"' \t\n\x7f", "[::1]", "12/", "\N{FULLWIDTH NUMBER SIGN}"])
def test_an_account_that_must_be_percent_encoded_is_refused_and_not_shown(monkeypatch, odd):
    """Taken for a part of the path, it would be stored; Python's own error prints it."""
    uri = f"https://me:se{odd}cret@host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("AWS_ENDPOINT_URL", uri)
    bucket = uri.replace("https", "s3")
    reads = (lambda: resolve_uri(uri), resolve_uri, lambda: without_account(uri), lambda: Storage(bucket))
    for read in (*reads, lambda: Storage("s3://bucket/below")):
        with pytest.raises(LoraxsError) as refused:
            read()
        assert "cret" not in f"{refused.value} {refused.value.hint}"
        assert refused.value.__context__ is None
        assert refused.value.hint


def test_redact_hides_user_and_password_wherever_they_stand():
    text = "request to http://user:p%40ss@host:5000/api failed; see https://host/docs"
    assert redact(text) == "request to http://***@host:5000/api failed; see https://host/docs"
    assert redact("postgresql://u:a@b@db/x") == "postgresql://***@db/x"
    assert redact("postgresql+psycopg2://u:a/b?c@db/x") == "postgresql+psycopg2://***@db/x"


def test_home_with_odd_characters_is_kept_as_it_is(monkeypatch, tmp_path):
    odd = tmp_path / "a b%20c"
    monkeypatch.setenv("LORAXS_HOME", str(odd))
    assert sqlite_path(resolve_uri(None)) == Path(odd) / "mlflow.db"
