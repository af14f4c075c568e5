"""Servers on a Ray cluster: replicas by Ray Serve, deployed by the command line, asked over HTTP through its proxy."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from support.shell import free_port, start

from loraxs_search.errors import ClusterError
from loraxs_search.predictor import Predictor
from loraxs_search.search.ray_serve import ServeArgs, deploy, serve_details

from .test_serve_decisions import elsewhere

pytestmark = [pytest.mark.long(part="software"), pytest.mark.timeout(900)]

TEXTS = ["a fine film", "two hours that I want back", "so so"]
KEY = {"authorization": "Bearer a-key"}


@dataclass
class Served:
    """An address that replicas answer at, and the process that deployed them."""

    url: str
    driver: subprocess.Popen[str]

    def post(self, path: str, body: Any, headers: Any = KEY) -> requests.Response:
        return requests.post(self.url + path, json=body, headers=headers, timeout=120)

    def classify(self, model: str, texts: Any = TEXTS, **more: Any) -> requests.Response:
        return self.post("/classify", {"model": model, "input": texts, **more})

    def numbers(self, name: str) -> dict[str, float]:
        """Return a number of `/metrics` by replica, once both have answered: one does, by chance."""
        found = dict[str, float]()
        while len(found) < 2:
            text = requests.get(f"{self.url}/metrics", headers=KEY, timeout=120).text
            lines = re.findall(rf'^{name}{{replica="(\w+)"}} (\S+)$', text, re.MULTILINE)
            found |= {replica: float(value) for replica, value in lines}
        return found


@pytest.fixture(scope="module")
def cluster(registry):
    """The address of a Ray on this machine, in the home of the registry; this process is connected to it."""
    import ray

    from loraxs_search.search.cluster.connection import connected

    with connected(None):
        yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def port():
    return str(free_port())  # one for all: a proxy stays where it is


# ---- what cannot be --------------------------------------------------------------------------------------------------
def test_what_cannot_be_deployed_is_said_and_leaves_nothing_behind(cluster, registry, port, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for task, uri, at, says in [
            ("nothing-here", registry[0], int(port), "but got 'nothing-here'"),
            ("task-2", f"sqlite:///{tmp_path}/nothing.db", int(port), "is not on this node"),
            ("task-2", registry[0], taken.getsockname()[1], "bind to address"),
        ]:
            with pytest.raises(ClusterError, match=says):
                deploy(ServeArgs(tasks=(task,), tracking_uri=uri), host="127.0.0.1", port=at)
            assert serve_details() == {}


# ---- two replicas ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def serve(cluster, port, registry, tmp_path_factory):
    """Serve tasks on the cluster as a user does, and return when they answer; all is taken down at the end."""
    home = Path(registry[0].removeprefix("sqlite:///")).parent
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("a-key\n")
    drivers = list[subprocess.Popen[str]]()

    def served(*arguments: str) -> Served:
        options = ("--address", cluster, "--port", port, "--tracking-uri", registry[0], "--api-key-file", str(keys))
        driver = start(home, "serve", *arguments, *options)
        drivers.append(driver)
        assert driver.stderr is not None
        said = list[str]()
        for line in driver.stderr:
            said.append(line)
            if found := re.search(r" at (http://\S+)", line):
                return Served(found[1], driver)
        raise AssertionError("".join(said))

    yield served
    for driver in drivers:
        was_there = driver.poll() is None
        driver.send_signal(signal.SIGTERM)
        out, err = driver.communicate()
        assert not was_there or (driver.returncode, out) == (0, ""), err


def test_answers_and_errors_pass_the_proxy_as_they_are_and_a_promotion_reaches_every_replica(serve, folders, registry):
    registry[1](folders["two"])
    pair = serve("task-2", "--replicas", "2")
    for status, answer in [
        (401, pair.post("/classify", {"model": "task-2", "input": "x"}, headers={})),
        (413, pair.classify("task-2", "x" * (5 << 20))),
    ]:
        assert answer.status_code == answer.json()["error"]["code"] == status
    answer = pair.classify("task-2")
    assert [one["label"] for one in answer.json()["data"]] == [one.label for one in Predictor(folders["two"])(TEXTS)]
    assert answer.headers["content-type"] == "application/json"
    digest = registry[1](folders["two-again"])
    while set(pair.numbers("loraxs_champions_moved").values()) != {1.0}:
        time.sleep(0.1)
    assert {pair.classify("task-2").headers["x-loraxs-digest"] for _ in range(20)} == {digest}


def test_options_for_decisions_and_rows_to_keep_reach_every_replica(serve, folders, registry, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAXS_FALLBACK_KEY", "sesame")
    registry[1](folders["three"])
    rain = {"type": "predicate", "instructions": "Is it raining?", "name": "c"}
    choices = [{"value": f"label {number}"} for number in range(3)]
    asked = [{"type": "choice", "instructions": "?", "name": "which", "choices": choices}, rain]
    body, count = {"model": "jev-latest", "input": TEXTS[0], "questions": asked}, 0
    usage = {"input_tokens": 1, "output_tokens": 1}
    with elsewhere((200, {"answers": [rain | {"probability": 0.25}], "usage": usage})) as (url, heard):
        options = ("--question", "which=task-3", "--model-alias", "jev-latest", "--fallback", url)
        pair = serve("task-3", "--replicas", "2", *options, "--keep", "unsure", str(tmp_path / "kept"))
        while 0.0 in pair.numbers("loraxs_rows_computed").values():
            own, other = pair.post("/v1/decisions", body).json()["answers"]
            assert own["x_task"].startswith("task-3:")
            assert (other["x_fallback"], other["probability"]) == (True, 0.25)
            count += 1
        assert heard == [("/v1/decisions", "Bearer sesame", body | {"questions": [rain]})] * count
        pair.driver.send_signal(signal.SIGTERM)  # then what waits is written
        assert pair.driver.wait() == 0
    (path,) = (tmp_path / "kept").rglob("*.jsonl")
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == [TEXTS[0]] * count


def test_a_stream_passes_the_proxy_piece_by_piece_and_replicas_are_taken_down_by_name(serve, cluster, decoder, say):
    writer = serve("one")
    body = {"model": "one", "prompt": "say w1 w2", "max_tokens": 40, "stream": True, "stop": ["never"]}
    with requests.post(f"{writer.url}/v1/completions", json=body, headers=KEY, stream=True, timeout=120) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        pieces = [line.removeprefix("data: ") for line in answer.iter_lines(decode_unicode=True) if line]
    expected = decoder.post("/v1/completions", body | {"stream": False}).json()
    texts = [json.loads(piece)["choices"][0]["text"] for piece in pieces[:-1]]
    assert ("".join(texts), pieces[-1]) == (expected["choices"][0]["text"], "[DONE]")
    assert answer.headers["x-loraxs-digest"] == expected["system_fingerprint"]
    assert len(texts) > 20
    writer.driver.kill()
    writer.driver.wait()
    assert writer.post("/v1/completions", body).ok, "replicas outlive their driver"
    assert say("serve", "--down", "--address", cluster).code == 0
    assert serve_details() == {}
