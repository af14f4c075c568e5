"""What a server hands out to those who compute elsewhere."""

from __future__ import annotations

import hashlib

import numpy as np
import onnxruntime
import psutil
import pytest
import requests
from safetensors.numpy import load

from loraxs_search.serve.app import Server
from loraxs_search.serve.served_models import ServedModels

from .conftest import running

TEXT = "a moving, funny film"


@pytest.fixture
def describe(encoder):
    def of(model):
        response = requests.get(f"{encoder.url}/onnx?model={model}", timeout=300)  # it may start a process
        assert response.status_code == 200, response.text
        return response.json()

    return of


def file(encoder, about, name):
    path = f"/onnx/{about['files'][name]}?model={about['model']}"
    return requests.get(f"{encoder.url}{path}", timeout=300)  # it may make the file again


def test_any_onnx_runtime_answers_as_the_server(encoder, describe):
    about = describe("task-3")
    content = {name: file(encoder, about, name).content for name in about["files"]}
    assert {name: hashlib.sha256(own).hexdigest() for name, own in content.items()} == about["files"]
    session = onnxruntime.InferenceSession(content["model.onnx"])
    _, short, long = about["examples"]
    ids = np.array([short["input_ids"]])
    inputs = {name: value[None] for name, value in load(content["adapter.safetensors"]).items()}
    tokens = dict(zip(about["token_inputs"], (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
    (logits,) = session.run(None, tokens | inputs)
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    np.testing.assert_allclose(shares, about["answer"]["probs"], atol=1e-4)
    expected = encoder.classify("task-3", short["texts"])
    np.testing.assert_allclose(shares, expected["data"][0]["probs"], atol=1e-4)
    assert about["digest"] == expected["system_fingerprint"]
    assert len(long["input_ids"]) == about["max_length"]


def test_what_a_client_has_is_not_sent_again(encoder, describe):
    first, other = describe("task-3"), describe("task-1")
    assert first["files"]["model.onnx"] == other["files"]["model.onnx"], "one graph for all tasks of the base"
    for path in (f"/onnx?model={first['model']}", f"/onnx/{first['files']['model.onnx']}?model=task-3"):
        whole = encoder.get(path)
        again = encoder.get(path, headers={"if-none-match": f'"x", W/{whole.headers["etag"]}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", whole.headers["etag"])
        assert encoder.get(path, headers={"if-none-match": '"other"'}).content == whole.content
    assert "immutable" in whole.headers["cache-control"]
    assert "private" in whole.headers["cache-control"]
    assert encoder.get(f"/onnx?model={first['model']}").headers["cache-control"] == "no-cache"


def test_a_promotion_changes_the_inputs_alone(encoder, describe, folders):
    before = describe("task-2")
    digest = encoder.promote(folders["two-again"])
    while encoder.classify("task-2", TEXT)["system_fingerprint"] != digest:
        pass
    after = describe("task-2")
    assert after["digest"] == digest
    changed = {name for name, sha256 in before["files"].items() if after["files"][name] != sha256}
    assert changed == {"adapter.safetensors"}
    assert file(encoder, before, "adapter.safetensors").status_code == 200, "who has begun can go on"


def test_files_that_are_gone_are_made_again_and_so_is_a_process_that_was_killed(encoder, describe):
    about = describe("task-3")
    makers = [own for own in psutil.Process().children() if "spawn_main" in " ".join(own.cmdline())]
    assert makers
    for maker in makers:
        maker.kill()
    name = "adapter.safetensors"
    folder = encoder.server.models.find("task-3").folder
    (folder.with_name(f"{folder.name}.onnx") / name).unlink()
    assert hashlib.sha256(file(encoder, about, name).content).hexdigest() == about["files"][name]


def test_what_cannot_be_handed_out_is_refused(encoder, decoder, make_adapter, base, tmp_path):
    assert encoder.get("/onnx?model=nobody").status_code == 404
    unnamed = encoder.get("/onnx")
    assert (unnamed.status_code, unnamed.json()["error"]["param"]) == (422, "model")
    for sha256, status in (("0" * 64, 404), ("..%2f..", 404), ("etc", 422)):
        assert encoder.get(f"/onnx/{sha256}?model=task-3").status_code == status
    assert encoder.get(f"/onnx/{'0' * 64}?model=nobody").status_code == 404
    refused = decoder.get("/onnx?model=one")
    assert refused.status_code == 400
    assert "text-generation" in refused.json()["error"]["message"]
    names = ("bert.encoder.layer.0.attention.self.query",)
    digest = encoder.promote(
        make_adapter(tmp_path / "other", base, num_labels=4, target_modules=names, rank=2, basis="bottom")
    )
    server = Server(ServedModels(["task-4"], uri=encoder.uri))
    with running(server) as url:
        answered = requests.post(f"{url}/classify", json={"model": "task-4", "input": TEXT}, timeout=300).json()
        assert answered["system_fingerprint"] == digest
        refused = requests.get(f"{url}/onnx?model=task-4", timeout=300)
    assert refused.status_code == 400
    assert "`basis: top`" in refused.json()["error"]["message"]


def test_keys_guard_it(encoder, describe):
    server = Server(ServedModels(["task-3"], uri=encoder.uri), keys=["sesame"])
    sha256 = describe("task-3")["files"]["adapter.safetensors"]
    with running(server) as url:
        for path in ("/onnx?model=task-3", f"/onnx/{sha256}?model=task-3"):
            assert requests.get(url + path, timeout=300).status_code == 401
            key = {"authorization": "Bearer sesame"}
            assert requests.get(url + path, headers=key, timeout=300).status_code == 200
        assert requests.get(f"{url}/web/../v1/models", timeout=300).status_code == 401
        assert requests.get(f"{url}/web/%2e%2e/app.py", timeout=300).status_code in (401, 404)
