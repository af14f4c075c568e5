"""`serve` refuses what it cannot do before it loads a base."""

from __future__ import annotations

import socket
import sys

REFUSED = [
    ([], "tasks or --all, but got neither"),
    (["reviews", "--host", "not an address"], "must be free to listen at"),
    (["reviews", "--api-key-file", "empty.txt"], "must have a key at least"),
    (["reviews", "--max-bytes", "much", "--port", "0"], "must be a size such as 1GiB"),
    (["reviews", "--replicas", "2"], "must go with --address"),
    (["reviews", "--address", "auto", "--replicas", "2:1"], "1 <= MIN <= MAX, but got '2:1'"),
    (["reviews", "--address", "auto", "--device", "cuda:1"], "Ray chooses the GPU"),
    (["reviews", "--device", "xyz", "--port", "0"], "`device` must be one that torch finds here"),
    (["--down"], "must go with --address"),
    (["--all", "--port", "0"], "the registry has none"),
]


def test_what_cannot_be_served_is_said(say, store_uri, tmp_path):
    (tmp_path / "cwd" / "empty.txt").write_text("\n")
    for arguments, says in REFUSED:
        said = say("serve", *arguments)
        assert (said.code in (1, 2), says in " ".join(said.err.split())) == (True, True), (arguments, said.err)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = say("serve", "reviews", "--port", str(taken.getsockname()[1]))
    assert (said.code, "choose another --port" in said.err) == (2, True)


def test_an_extra_that_is_missing_is_named(say, monkeypatch, store_uri):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = say("serve", "reviews")
    assert said.code == 2
    assert "pip install '.[serve]'" in said.err
