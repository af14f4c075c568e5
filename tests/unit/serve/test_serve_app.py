"""A server's answers are those of `predict`, champions move under it, and whatever a client sends it goes on."""

from __future__ import annotations

import gc
import json
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance
from support.browsers import CHROMIUM, chromium

from loraxs_search.base_model.locate import locate
from loraxs_search.errors import RegistryError, UsageError
from loraxs_search.predictor import Predictor
from loraxs_search.records.task import BaseModelRef
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.store import Registry
from loraxs_search.serve.app import Server
from loraxs_search.serve.bodies import ErrorBody
from loraxs_search.serve.decisions import DetailBody
from loraxs_search.serve.options import read_keys
from loraxs_search.serve.served_models import ServedModels

from .conftest import WRITERS, running

TEXTS = ["a fine film", "two hours that I want back", "so so", "it is what it is, and no more than that"]


def close(one, other):
    return all(abs(a - b) < 1e-5 for a, b in zip(one, other, strict=True))


# ---- answers ---------------------------------------------------------------------------------------------------------
def test_answers_are_those_of_predict_and_name_their_adapter(encoder, folders):
    for name, model in (("two", "task-2"), ("three", "task-3")):
        response = encoder.post("/classify", {"model": model, "input": TEXTS})
        answer, expected = response.json(), Predictor(folders[name])(TEXTS)
        assert [one["label"] for one in answer["data"]] == [one.label for one in expected]
        assert close([one["score"] for one in answer["data"]], [one.score for one in expected])
        for one, other in zip(answer["data"], expected, strict=True):
            assert close(one["probs"], other.probabilities.values())
            assert one["num_classes"] == len(other.probabilities)
            assert one.get("sure") == ([0.9] if name == "two" else None), "an adapter without points says nothing"
            assert one["label"] == answer["labels"][one["probs"].index(max(one["probs"]))]
        assert [one["index"] for one in answer["data"]] == [0, 1, 2, 3]
        assert answer["model"] == model
        assert answer["usage"]["prompt_tokens"] > len(TEXTS)
        digest = Registry(encoder.uri).resolve(model).digest
        assert response.headers["x-loraxs-digest"] == answer["system_fingerprint"] == digest
    data = encoder.classify("task-1", TEXTS)["data"]
    assert close([one["score"] for one in data], [one.score for one in Predictor(folders["number"])(TEXTS)])
    assert all(one["label"] is None and one["probs"] is None for one in data)
    listed = encoder.classify("task-2", [TEXTS[0]])["data"]
    assert encoder.classify("task-2", TEXTS[0])["data"] == listed
    assert encoder.classify("task-2", {"text": TEXTS[0]})["data"] == listed
    assert encoder.post("/v1/classify", {"model": "task-2", "input": TEXTS[0]}).json()["data"] == listed
    assert 'loraxs_requests_total{route="/classify",status="200"}' in encoder.get("/metrics").text


def test_models_are_listed_with_what_they_stand_for(registry, encoder):
    found = {model["id"]: model for model in encoder.get("/v1/models").json()["data"]}
    champion, own = Registry(encoder.uri).resolve("task-3"), found["task-3"]
    assert (own["digest"], own["version"]) == (champion.digest, champion.version)
    assert (own["labels"], own["parent"]) == (["label 0", "label 1", "label 2"], encoder.server.models.base.id)
    every = {name for name, _ in ServedModels([], uri=registry[0]).served()}
    assert {"task-1", "task-2", "task-3"} <= every or every == {*WRITERS}, "all of one base"


def test_requests_at_once_and_more_rows_than_a_pass_has_are_answered_as_each_alone(encoder):
    wanted = [("task-2", 0), ("task-3", 1), ("task-1", 2), ("task-2", 3)] * 12
    alone = {(model, row): encoder.classify(model, TEXTS[row])["data"][0]["score"] for model, row in set(wanted)}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda it: encoder.classify(it[0], TEXTS[it[1]])["data"][0]["score"], wanted))
    assert close(answers, [alone[it] for it in wanted])
    texts = [f"{word} {number}" for number, word in enumerate(("film", "actor", "plot") * 13)]
    first = [encoder.classify("task-2", text)["data"][0]["score"] for text in texts[:5]]
    data = encoder.classify("task-2", texts)["data"]
    assert [one["index"] for one in data] == list(range(39))
    assert close([one["score"] for one in data[:5]], first)


def test_long_rows_are_cut_as_in_training_or_refused(encoder):
    long = "word " * 500
    assert encoder.classify("task-2", [long, "short"])["truncated"] == 1
    response = encoder.post("/classify", {"model": "task-2", "input": long, "truncate": False})
    assert response.status_code == 400
    assert "at most 128 tokens" in response.json()["error"]["message"]
    response = encoder.post("/classify", {"model": "task-2", "input": [*["short"] * 9, long], "truncate": False})
    assert "longer: row 10." in response.json()["error"]["message"]


# ---- champions -------------------------------------------------------------------------------------------------------
def test_a_champion_on_another_base_is_refused_and_the_last_one_goes_on(
    encoder, folders, base, make_adapter, tmp_path, caplog
):
    shutil.copytree(base.path, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, tmp_path / "other" / "model.safetensors")
    other = locate(BaseModelRef(str(tmp_path / "other")))
    before = encoder.classify("task-3", TEXTS)
    encoder.promote(make_adapter(tmp_path / "adapter", other, num_labels=3, rank=2))
    while not any("its new one is refused" in record.message for record in caplog.records):
        time.sleep(0.01)
    assert "task-3" in encoder.get("/ready").json()["refused"]
    after = encoder.classify("task-3", TEXTS)
    assert (after["data"], after["system_fingerprint"]) == (before["data"], before["system_fingerprint"])
    encoder.promote(folders["three"])
    while encoder.classify("task-3", TEXTS)["system_fingerprint"] == before["system_fingerprint"]:
        time.sleep(0.01)
    assert sum("its new one is refused" in record.message for record in caplog.records) == 1
    name = f"task-3:{Registry(encoder.uri).resolve('task-3').version}"  # a version that is removed is unknown
    encoder.promote(folders["three"])
    assert encoder.post("/classify", {"model": name, "input": "x"}).ok
    Promoter(encoder.uri, "task-3").remove(int(name.partition(":")[2]))
    while (response := encoder.post("/classify", {"model": name, "input": "x"})).ok:
        time.sleep(0.01)
    assert response.status_code == 404


def test_evicted_adapters_are_loaded_again_though_their_folder_is_gone(registry, encoder, folders):
    tasks = ["task-2", "task-3", "task-1"]
    limit = ServedModels(tasks, uri=registry[0]).bank.num_bytes // 2
    models = ServedModels(tasks, uri=registry[0], max_bytes=limit)
    evicted = models.find("task-2")
    assert evicted.digest not in models.bank
    shutil.rmtree(evicted.folder)
    with running(Server(models)) as url:
        for model, name in (("task-2", "two"), ("task-3", "three"), ("task-1", "number")) * 2:
            answer = requests.post(f"{url}/classify", json={"model": model, "input": TEXTS}, timeout=60)
            expected = [one.score for one in Predictor(folders[name])(TEXTS)]
            assert close([one["score"] for one in answer.json()["data"]], expected), answer.text
        assert models.bank.num_bytes <= limit


# ---- what is refused -------------------------------------------------------------------------------------------------
def test_what_a_server_cannot_answer_has_a_status_and_a_sentence(encoder):
    for body, status, says in [
        ({"model": "task-9", "input": "x"}, 404, "task-9"),
        ({"model": "task-2:999", "input": "x"}, 404, "999"),
        ({"model": "task-2"}, 422, "input"),
        ({"model": "task-2", "input": []}, 400, "1 to 100 rows, but has 0"),
        ({"model": "task-2", "input": ["x"] * 101}, 413, "1 to 100 rows, but has 101"),
        ({"model": "task-2", "input": ["fine", "  "]}, 400, "row 2"),
        ({"model": "task-2", "input": ["x", {"other": "x"}]}, 400, "an object with text, but row 2 has other"),
        ({"model": "task-2", "input": {"\ud800": "x"}}, 400, "row 1 has \\ud800"),
        ({"model": "task-2", "input": {"text": float("nan")}}, 400, "text"),
        ({"model": "task-2", "input": "x", "truncate": "yes"}, 422, "truncate"),
        ([], 422, "body"),
    ]:
        response = encoder.post("/classify", body)
        message = response.json()["error"]["message"]
        assert (response.status_code, says in message) == (status, True), message
        assert encoder.uri not in response.text
        assert "\n" not in message.strip()
    response = encoder.post("/v1/completions", {"model": "task-2", "prompt": "x"})
    assert (response.status_code, "use /classify" in response.json()["error"]["message"]) == (400, True)
    answer = encoder.get("/classify")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_bodies_that_are_no_json_or_too_large_are_refused(encoder):
    headers = {"content-type": "application/json"}
    for raw, status in [(b"{", 400), (b"\xff\xfe", 400), (b"", 422), (b"x" * 100_001, 413)]:
        response = requests.post(f"{encoder.url}/classify", data=raw, headers=headers, timeout=60)
        assert (response.status_code, bool(response.json()["error"]["message"])) == (status, True)
    assert requests.post(f"{encoder.url}/classify", data=b"{}", timeout=60).status_code == 415

    def parts():  # without a length, a body is measured as it comes
        for _ in range(101):
            yield b" " * 1000

    assert requests.post(f"{encoder.url}/classify", data=parts(), timeout=60).status_code == 413


def test_a_client_that_hangs_up_leaves_nothing_behind(encoder, caplog):
    body = json.dumps({"model": "task-2", "input": ["word " * 100] * 64}).encode()
    head = (
        f"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    host, port = encoder.url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
    assert encoder.post("/classify", {"model": "task-2", "input": "x"}).ok
    while encoder.server.engine.num_waiting:
        time.sleep(0.01)
    assert encoder.post("/classify", {"model": "task-2", "input": "x"}).ok  # all have heard of what became of theirs
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_key_is_asked_for(registry, encoder):
    with running(
        Server(ServedModels(["task-2"], uri=registry[0]), keys={"sesame": frozenset(), "open": frozenset()})
    ) as url:
        body = {"model": "task-2", "input": "x"}
        for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic sesame"}):
            response = requests.post(f"{url}/classify", json=body, headers=headers, timeout=60)
            assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")
        for key in ("sesame", "open"):
            headers = {"authorization": f"Bearer {key}"}
            assert requests.post(f"{url}/classify", json=body, headers=headers, timeout=60).ok
        assert requests.get(f"{url}/v1/models", timeout=60).status_code == 401
        assert requests.get(f"{url}/ready", timeout=60).ok


def test_keys_are_read_as_they_are_sent(tmp_path):
    (keys := tmp_path / "keys").write_bytes("\ufeffsecret\r\n\nother one two.b\n".encode())
    assert read_keys(keys) == {"secret": frozenset(), "other": {"one", "two.b"}}
    for odd in ("schlüssel", "same\nsame task"):
        keys.write_text(odd)
        with pytest.raises(UsageError, match="ASCII"):
            read_keys(keys)


def test_what_cannot_be_served_is_refused_at_the_start(registry, encoder):
    with pytest.raises(RegistryError):
        ServedModels(["nobody"], uri=registry[0])
    with pytest.raises(UsageError):
        ServedModels([], uri=f"{registry[0]}.none")


# ---- anything --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def decoder_api(decoder):
    return schemathesis.openapi.from_url(f"{decoder.url}/openapi.json")


@schemathesis.pytest.from_fixture("decoder_api").parametrize()
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
def test_what_the_description_allows_and_forbids_has_no_fault_of_the_server(case):
    case.call_and_validate(checks=[not_a_server_error, response_schema_conformance])


def test_errors_are_sent_as_they_are_described(encoder):
    paths = encoder.get("/openapi.json").json()["paths"]
    assert paths
    for path, operation in ((path, own) for path, each in paths.items() for own in each.values()):
        described = {status: own["content"] for status, own in operation["responses"].items() if status[0] in "45"}
        name = "DetailBody" if path == "/v1/systemone" else "ErrorBody"
        error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        assert described == {"4XX": error, "5XX": error}
    DetailBody.model_validate_json(encoder.post("/v1/systemone", {}).content)
    for body in ({"model": "task-2"}, {"model": "nobody", "input": "x"}):
        ErrorBody.model_validate_json(encoder.post("/classify", body).content)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.text(max_size=40) | st.fixed_dictionaries({"text": VALUES}) | VALUES, max_size=4)
MODELS = st.sampled_from(["task-2", "task-3", "task-1", "task-2:1", "task-2@champion"])


@hypothesis.given(model=MODELS, rows=ROWS | VALUES, truncate=st.booleans() | VALUES)
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
def test_any_rows_for_a_model_that_is_there(encoder, model, rows, truncate):
    response = encoder.post("/classify", {"model": model, "input": rows, "truncate": truncate})
    assert response.status_code < 500, response.text
    assert response.json()


@hypothesis.given(
    model=st.sampled_from(["one", "two", "listed"]),
    prompt=st.text(max_size=20) | st.lists(st.text(max_size=9), max_size=3) | VALUES,
    options=st.fixed_dictionaries(
        {},
        optional={
            "max_tokens": st.integers(-1, 70) | VALUES,
            "temperature": st.floats(0, 101) | VALUES,
            "top_p": st.floats(0, 1) | VALUES,
            "seed": st.integers(),
            "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3) | VALUES,
            "n": st.integers(0, 4),
            "echo": st.booleans(),
            "stream": st.booleans(),
        },
    ),
)
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
def test_any_prompt_for_a_model_that_is_there(decoder, model, prompt, options):
    response = decoder.post("/v1/completions", {"model": model, "prompt": prompt, **options})
    assert response.status_code < 500, response.text
    assert '"server_error"' not in response.text


# ---- last, since all share the store ---------------------------------------------------------------------------------
def test_a_store_that_is_gone_is_a_registry_that_is_away(encoder):
    store = Path(encoder.uri.removeprefix("sqlite:///"))
    away = store.rename(store.with_name("away.db"))
    while encoder.get("/ready").json()["registry"] != "away":
        time.sleep(0.01)
    assert encoder.post("/classify", {"model": "task-2", "input": "x"}).ok
    away.rename(store)
    while encoder.get("/ready").json()["registry"] != "ok":
        time.sleep(0.01)
    assert encoder.post("/classify", {"model": "task-2", "input": "x"}).ok


# ---- the page in a real browser --------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's package chromium")
def test_on_the_page_a_key_is_asked_for_and_tasks_can_be_tried(registry, encoder, decoder):
    text = "<b>a fine film</b>"
    expected = encoder.classify("task-2", text)
    words = decoder.classify("two", {"first": "w1", "second": "w2"})["data"][0]["label"]
    locked = Server(ServedModels(["task-2", "task-1"], uri=registry[0]), keys={"sesame": frozenset()})
    with running(locked) as url, chromium() as browser:
        page = browser.new_page()
        page.goto(url)
        page.fill("#key", "sesame")
        page.press("#key", "Tab")
        page.wait_for_selector("#model option", state="attached")
        page.select_option("#model", "task-2")
        page.fill("textarea", text)
        page.click("button")
        page.wait_for_selector(".bar")
        shown = [row.inner_text().split("\n") for row in page.query_selector_all(".bar")]
        assert [label for label, _ in shown] == ["label 0", "label 1"]
        assert [float(value) for _, value in shown] == pytest.approx(expected["data"][0]["probs"], abs=1e-3)
        assert expected["system_fingerprint"] in page.inner_text("small")
        page.fill("textarea", "")
        page.click("button")
        page.wait_for_selector("[role=alert]")
        page.select_option("#model", "task-1")
        page.fill("textarea", text)
        page.click("button")
        number = encoder.classify("task-1", text)["data"][0]["score"]
        page.wait_for_selector("output p:not([role])")
        assert float(page.inner_text("output")) == pytest.approx(number, abs=1e-5)
        page.goto(decoder.url)
        page.select_option("#model", "two")
        page.fill("#column-first", "w1")
        page.fill("#column-second", "w2")
        page.click("button")
        page.wait_for_selector("output p")
        assert page.inner_text("output").strip() == (words or "(no text)")
