"""Files of a store: no more of one is written than it may have, and a disk's fault is not taken for the server's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loraxs_search.errors import HomeError, IntegrityError
from loraxs_search.registry._mlflow import fetch_file

SOURCE, NAME = "mlflow-artifacts:/1/models/m/artifacts", "README.md"
CHUNK, MAX_CHUNKS = bytes(2**16), 2**9


class Endless(BaseHTTPRequestHandler):
    """Sends chunk after chunk and never says how many, as long as somebody reads."""

    protocol_version = "HTTP/1.1"
    num_sent = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for _ in range(MAX_CHUNKS):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
                type(self).num_sent += 1
        except OSError:
            return
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def endless() -> Iterator[str]:
    """The address of a server whose files have no end."""
    Endless.num_sent = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_sends_without_end_is_cut_off(endless: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=rf"{NAME} must have at most 100,000 bytes, but .*{endless}"):
        fetch_file(endless, SOURCE, NAME, tmp_path, 100_000)
    assert (tmp_path / NAME).stat().st_size <= 100_000
    assert Endless.num_sent < MAX_CHUNKS


def test_what_mlflows_client_fetched_is_measured(store_uri: str, tmp_path: Path) -> None:
    source = tmp_path / "artifacts"
    source.mkdir()
    (source / NAME).write_bytes(bytes(11))
    (tmp_path / "fetched").mkdir()
    with pytest.raises(IntegrityError, match=f"{NAME} must have at most 10 bytes, but 11 came from"):
        fetch_file(store_uri, str(source), NAME, tmp_path / "fetched", 10)
    assert fetch_file(store_uri, str(source), NAME, tmp_path / "fetched", 11).read_bytes() == bytes(11)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_is_told_as_one(endless: str, tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to("/dev/full")
    with pytest.raises(HomeError, match=f"No space left to write {tmp_path / NAME}"):
        fetch_file(endless, SOURCE, NAME, tmp_path, 2**30)
