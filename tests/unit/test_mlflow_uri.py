"""Plain requests: what goes along, what does not, and what is said of a server that does not answer."""

from __future__ import annotations

import base64
import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from loraxs_search.errors import TrackingError
from loraxs_search.mlflow_uri import check_server, get


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


def test_the_account_of_mlflows_variables_goes_along_as_mlflow_sends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p@ß 100%25 ☃")
    accounts: list[str | None] = []
    with server(accounts) as uri:
        assert get(f"{uri}/x", timeout_s=5).status_code == 200
    assert accounts == ["Basic " + base64.b64encode("me:p@ß 100%25 ☃".encode()).decode()]


def test_without_variables_no_account_is_sent() -> None:
    accounts: list[str | None] = []
    with server(accounts) as uri:
        get(uri, timeout_s=5)
    assert accounts == [None]


def test_a_server_that_sends_on_to_another_does_not_send_the_password_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    first: list[str | None] = []
    second: list[str | None] = []
    with server(second) as other, server(first, location=other.replace("127.0.0.1", "localhost")) as uri:
        get(uri, timeout_s=5)
    assert str(first[0]).startswith("Basic ")
    assert second == [None]


@pytest.mark.parametrize("status", [200, 401, 403])
def test_a_server_that_wants_an_account_is_alive(status: int) -> None:
    with server([], status) as uri:
        check_server(uri)


def test_a_server_that_answers_with_a_fault_is_not() -> None:
    with server([], 502) as uri, pytest.raises(TrackingError, match=r"/health .*502"):
        check_server(uri)


def test_a_server_that_is_not_there_is_said_with_the_systems_words_and_without_its_password() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    message = f"at http://\\*\\*\\*@127.0.0.1:{port} must be reachable, but: .Errno 111. Connection refused"
    with pytest.raises(TrackingError, match=message) as away:
        check_server(f"http://user:secret@127.0.0.1:{port}")
    assert "secret" not in str(away.value)
    assert "--tracking-uri" in str(away.value.hint)


def test_a_server_that_hangs_is_given_up_in_time() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(TrackingError, match="timed out"):
            check_server(f"http://127.0.0.1:{mute.getsockname()[1]}", timeout_s=0.3)


@pytest.mark.parametrize("uri", ["http://host.invalid:5000", "http://:5000", "http://[::1"])
def test_an_address_that_leads_nowhere_is_said(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"must be reachable, but: .+"):
        check_server(uri)
