"""Who is notified of a promotion, what they get, and that a promotion stands whatever goes wrong."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.searched_studies import Tried, searched

import loraxs_search
from loraxs_search import promotion_notice, registry
from loraxs_search.home import write_atomic
from loraxs_search.promotion_notice import notify, shown_address
from loraxs_search.records import Decision, Notification, PromotedEvent, PromotionRule, from_json, to_json

DECISION = Decision("reviews", "mine", True, "00004", 0.81, None, "accuracy", ("better",), version=3)


@dataclass
class Webhook:
    """A server on this machine, with what it was sent, that gives these answers one after the other, then 200."""

    address: str
    answers: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            hook.headers.append(dict(self.headers))
            self.send_response(hook.answers.pop(0) if hook.answers else 200)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815  # its name is http.server's

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook = Webhook(f"http://127.0.0.1:{server.server_port}/services/SECRET?token=SECRET")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hook
    server.shutdown()
    server.server_close()
    thread.join()


def paused(_: float) -> None:
    """No test waits for a clock."""


def test_a_server_gets_the_decision_as_json(webhook: Webhook, caplog: pytest.LogCaptureFixture) -> None:
    notify(Notification(url=webhook.address), DECISION)
    (body,), (headers,) = webhook.bodies, webhook.headers
    event = from_json(PromotedEvent, body)
    assert event.decision == DECISION
    assert (event.study, event.task, event.event, event.version) == ("mine", "reviews", "promoted", 1)
    assert event.text == "reviews: trial 00004 of mine is the new champion"
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert caplog.records == []


def test_an_address_may_come_from_the_environment_and_have_an_account(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_WEBHOOK", webhook.address.replace("://", "://me:pass%40word@"))
    notify(Notification(url="$TEAM_WEBHOOK"), DECISION)
    assert webhook.headers[0]["Authorization"] == "Basic bWU6cGFzc0B3b3Jk"
    assert "pass" not in webhook.headers[0]["Host"]


@pytest.mark.parametrize(
    ("answers", "asked", "said"),
    [
        ([503, 429], 3, None),
        ([503, 503, 503, 503], 3, "it answered 503"),
        ([404], 1, "it answered 404"),
        ([302], 1, "it answered 302"),
    ],
)
def test_it_is_tried_again_only_where_that_may_help(
    webhook: Webhook, caplog: pytest.LogCaptureFixture, answers: list[int], asked: int, said: str | None
) -> None:
    webhook.answers += answers
    notify(Notification(url=webhook.address), DECISION, pause=paused)
    assert len(webhook.bodies) == asked
    assert (said is None) == (caplog.text == "")
    assert said is None or said in caplog.text
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_is_away_or_no_such_server_is_a_warning_without_secrets(
    caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    notify(Notification(url=f"{scheme}://me:SECRET@127.0.0.1:{port}/SECRET"), DECISION, pause=paused)
    assert "the adapter is promoted, but notifying" in caplog.text
    assert f"{scheme}://127.0.0.1:{port}/***" in caplog.text
    assert "cannot be reached" in caplog.text
    assert "SECRET" not in caplog.text


def test_a_server_that_answers_what_is_no_http_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for _ in range(3):
                connection, _address = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"SSH-2.0-x\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        notify(Notification(url=f"http://127.0.0.1:{listening.getsockname()[1]}/"), DECISION, pause=paused)
        thread.join()
    assert "its answer is no HTTP" in caplog.text


def test_a_server_that_never_answers_whole_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(promotion_notice, "_POST_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        notify(Notification(url=f"http://127.0.0.1:{listening.getsockname()[1]}/"), DECISION)
    assert "no whole answer in 0.05 s" in caplog.text


def test_a_variable_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("TEAM_WEBHOOK", raising=False)
    notify(Notification(url="$TEAM_WEBHOOK"), DECISION)
    assert "notifying $TEAM_WEBHOOK failed: the environment variable TEAM_WEBHOOK must be an address" in caplog.text


def test_a_program_gets_it_on_stdin_and_leaves_stdout_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    script = "import pathlib, sys; print('talk'); pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"
    notify(Notification(command=(sys.executable, "-c", script, str(tmp_path / "got"))), DECISION)
    assert json.loads((tmp_path / "got").read_text())["decision"]["winner"] == "00004"
    assert capfd.readouterr().out == ""
    assert caplog.records == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("no-such-program-here",), "notifying 'no-such-program-here' failed: it cannot be started"),
        ((sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)"), "exit code 3: what went wrong"),
        ((sys.executable, "-c", "raise SystemExit(3)"), "exit code 3: it said nothing"),
        (("a\0b",), "it cannot be started"),
    ],
)
def test_a_program_that_fails_is_a_warning(
    caplog: pytest.LogCaptureFixture, command: tuple[str, ...], said: str
) -> None:
    notify(Notification(command=command), DECISION)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert said in record.getMessage()


def test_a_program_that_does_not_end_is_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(promotion_notice, "_COMMAND_S", 0.05)
    notify(Notification(command=(sys.executable, "-c", "import threading; threading.Event().wait()")), DECISION)
    assert "it had not ended after 0.05 s" in caplog.text


def test_a_program_is_notified_although_a_server_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    script = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
    notify(Notification("$NOWHERE", (sys.executable, "-c", script, str(tmp_path / "got"))), DECISION)
    assert (tmp_path / "got").exists()
    assert len(caplog.records) == 1


def test_of_an_address_its_server_is_shown() -> None:
    assert shown_address("https://me:SECRET@hooks.example.com:8443/T0/SECRET?x=SECRET") == (
        "https://hooks.example.com:8443/***"
    )
    assert shown_address("$TEAM_WEBHOOK") == "$TEAM_WEBHOOK"


def promotes(decision: Decision, notification: Notification | None, monkeypatch: pytest.MonkeyPatch) -> Decision:
    """Promote a study whose registry decides so."""
    folder = searched("mine", [Tried({"rank": 4}, 0.8)])
    info = replace(folder.info, promotion=PromotionRule(notify=notification))
    write_atomic(folder.path / "study.json", to_json(info))
    monkeypatch.setattr(registry.Registry, "promote", lambda *_, **__: (decision, None))
    return loraxs_search.promote("mine", tracking_uri=f"sqlite:///{folder.path}/mlflow.db")


@pytest.mark.parametrize("promoted", [True, False])
def test_promote_notifies_of_a_promotion_and_of_nothing_else(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, promoted: bool
) -> None:
    decision = replace(DECISION, promoted=promoted)
    assert promotes(decision, Notification(webhook.address), monkeypatch) == decision
    assert len(webhook.bodies) == promoted


def test_a_promotion_stands_although_its_notification_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert promotes(DECISION, Notification(command=("no-such-program-here",)), monkeypatch) == DECISION
    assert "the adapter is promoted, but notifying" in caplog.text


def test_nobody_is_notified_by_default(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert promotes(DECISION, None, monkeypatch) == DECISION
    assert caplog.records == []


def test_the_champion_of_a_base_alone_is_called_so(webhook: Webhook) -> None:
    for aliases, title in ((("champion", "champion-tiny"), "champion"), (("champion-tiny",), "champion-tiny")):
        notify(Notification(url=webhook.address), replace(DECISION, aliases=aliases))
        assert json.loads(webhook.bodies[-1])["text"].endswith(f"is the new {title}")
