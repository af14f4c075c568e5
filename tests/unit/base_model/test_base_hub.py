"""What the hub's real client makes of a hub that says no, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_a-token-that-nobody-may-see"


class _Hub(BaseHTTPRequestHandler):
    """`org/gated` is open to nobody, `org/private` is hidden; a token with `invalid` in it is none."""

    def do_GET(self) -> None:
        token = self.headers.get("authorization", "")
        if "invalid" in token:
            self._answer(401, "Invalid credentials in Authorization header")
        elif "/private" in self.path:
            self._answer(401, "Repository not found", "RepoNotFound")
        elif "/tree/" in self.path:
            self._answer(200, [{"type": "file", "path": "config.json", "size": 2, "oid": "a" * 40}])
        elif self.path.startswith("/api/models/"):
            self._answer(200, {"id": "org/gated", "sha": COMMIT, "siblings": [{"rfilename": "config.json"}]})
        else:
            self._answer(403 if token else 401, "Access to model org/gated is restricted.", "GatedRepo")

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, body: Any, code: str | None = None) -> None:
        content = json.dumps(body if status == 200 else {"error": body}).encode()
        self.send_response(status)
        if status != 200:
            self.send_header("X-Error-Message", body)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def ask(tmp_path):
    """Locate a base on that hub in a process of its own; return message and hint."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    code = (
        "import json, sys; from loraxs_search.base_model.locate import locate\n"
        "from loraxs_search.records.base import BaseModelRef\n"
        "from loraxs_search.errors import LoraxsError\n"
        "try: locate(BaseModelRef(id=sys.argv[1]))\n"
        "except LoraxsError as error: print(json.dumps([error.message, error.hint]))"
    )

    def run(name: str, token: str | None) -> tuple[str, str]:
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        environment.pop("HF_TOKEN", None)
        if token is not None:
            environment["HF_TOKEN"] = token
        command = [sys.executable, "-c", code, name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        assert TOKEN not in done.stdout + done.stderr
        message, hint = json.loads(done.stdout)
        return message, hint.replace(endpoint, "HUB")

    yield run
    server.shutdown()
    server.server_close()


def test_a_gated_base_without_a_token_names_the_page_and_how_to_give_one(ask):
    message, hint = ask("org/gated", None)
    assert "it is gated" in message
    assert message.endswith("no token was given.")
    assert hint.startswith("ask for access at HUB/org/gated, then")
    assert "`hf auth login`" in hint
    assert "HF_TOKEN" in hint


def test_a_gated_base_with_the_token_of_somebody_else_says_so_and_keeps_it_secret(ask, tmp_path):
    message, hint = ask("org/gated", TOKEN)
    assert message.endswith("the token's account is not one.")
    assert "HUB/org/gated" in hint
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []


def test_a_token_that_the_hub_does_not_know_is_named_as_the_fault(ask):
    message, hint = ask("org/gated", "hf_invalid")
    assert message.endswith("the token is not valid.")
    assert "make a new token" in hint


def test_a_private_base_may_lack_a_token_or_not_be_there(ask):
    message, hint = ask("org/private", None)
    assert "'org/private' was not found" in message
    assert hint.startswith("check the id; for a private model give an account's token")
