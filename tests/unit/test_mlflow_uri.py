"""Where the store is, that its address holds no account, and what plain requests send and say."""

from __future__ import annotations

import base64
import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator

import pytest
from support.servers import https_server

from loraxs_search.errors import LoraxsError, TrackingError
from loraxs_search.mlflow_uri import artifact_root, check_server, get, redact, resolve_uri, sqlite_path
from loraxs_search.studies.storage import Storage


@contextlib.contextmanager
def server(accounts: list[str | None], status: int = 200, location: str | None = None) -> Iterator[str]:
    """Serve until the end, and note in `accounts` what each request says of itself; `location` is where it sends on."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            accounts.append(self.headers["Authorization"])
            self.send_response(302 if location else status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


def test_the_account_of_mlflows_variables_goes_along_as_mlflow_sends_it_and_to_no_other_server(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p@ß 100%25 ☃")
    first, second = list[str | None](), list[str | None]()
    with server(second) as other, server(first, location=other.replace("127.0.0.1", "localhost")) as uri:
        assert get(uri, timeout_s=5).status_code == 200
    assert first == ["Basic " + base64.b64encode("me:p@ß 100%25 ☃".encode()).decode()]
    assert second == [None]


def test_a_server_that_wants_an_account_is_alive_and_one_that_answers_with_a_fault_is_not():
    accounts: list[str | None] = []
    with server(accounts, 403) as uri:
        check_server(uri)
    assert accounts == [None], "without variables no account is sent"
    with server([], 502) as uri, pytest.raises(TrackingError, match=r"/health .*502"):
        check_server(uri)


def test_a_server_that_is_not_there_or_hangs_or_can_be_none_is_said_with_the_systems_words():
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(TrackingError, match="timed out"):
            check_server(uri, timeout_s=0.3)
    with pytest.raises(TrackingError, match=f"{uri} must be reachable, but: .Errno 111. Connection refused") as away:
        check_server(uri)
    assert "--tracking-uri" in str(away.value.hint)
    for nowhere in ("http://:5000", "http://[::1"):
        with pytest.raises(TrackingError, match=r"must be reachable, but: .+"):
            check_server(nowhere)


def test_a_certificate_of_an_unknown_authority_is_said_with_the_variable_that_names_one(tmp_path, monkeypatch):
    with https_server(tmp_path) as (uri, authority):
        with pytest.raises(TrackingError, match="certificate verify failed") as refused:
            check_server(uri)
        assert "REQUESTS_CA_BUNDLE" in str(refused.value.hint)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
        check_server(uri)


def test_the_argument_wins_over_the_environment_and_without_both_the_store_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "a b%20c"))
    assert sqlite_path(resolve_uri(None)) == tmp_path / "a b%20c" / "mlflow.db"
    assert artifact_root(resolve_uri(None)) == tmp_path / "a b%20c" / "artifacts"
    monkeypatch.chdir(tmp_path)
    assert sqlite_path(resolve_uri("sqlite:///runs.db")) == tmp_path / "runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment:5000/")
    assert resolve_uri(None) == "http://from-environment:5000"
    assert resolve_uri("https://from-argument") == "https://from-argument"


def test_other_kinds_of_store_are_refused():
    for uri in ("postgresql://u:secret@db/runs", "./mlruns", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(TrackingError) as refused:
            resolve_uri(uri)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("odd", ["", "/", "[", "\n", "\N{FULLWIDTH NUMBER SIGN}"])
def test_an_account_in_an_address_is_refused_and_not_shown(monkeypatch, odd):
    """Taken for a part of the path, it would be stored; Python's own error prints it."""
    uri = f"https://me:se{odd}cret@host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("AWS_ENDPOINT_URL", uri)
    buckets = uri.replace("https", "s3"), "s3://bucket/below"
    for read, address in ((resolve_uri, uri), (resolve_uri, None), *((Storage, bucket) for bucket in buckets)):
        with pytest.raises(LoraxsError) as refused:
            read(address)
        assert "cret" not in f"{refused.value} {refused.value.hint}"
        assert refused.value.__context__ is None
        assert refused.value.hint


def test_redact_hides_user_and_password_wherever_they_stand():
    text = "request to http://user:p%40ss@host:5000/api failed; see https://host/docs"
    assert redact(text) == "request to http://***@host:5000/api failed; see https://host/docs"
    assert redact("postgresql://u:a@b@db/x") == "postgresql://***@db/x"
    assert redact("postgresql+psycopg2://u:a/b?c@db/x") == "postgresql+psycopg2://***@db/x"
