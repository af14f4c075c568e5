"""Decisions are those of `predict`, whichever client asks, and only what no task answers goes elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import hypothesis
import openai
import pytest
import requests
from hypothesis import strategies as st

from loraxs_search.errors import UsageError
from loraxs_search.predictor import Predictor
from loraxs_search.records.task import DataSource, Task
from loraxs_search.serve.app import Server
from loraxs_search.serve.bodies import Limits
from loraxs_search.serve.decisions import Decision, Question, Routing
from loraxs_search.serve.fallback import Fallback
from loraxs_search.serve.served_models import ServedModels

from .conftest import Running, running
from .test_serve_app import VALUES, close

TEXT = "Charged twice for March: I want my money back, or I dispute it with my bank."
REFUND, TEAM = "Is the customer asking for money back?", "Which team should handle this ticket?"
ANGER = "How frustrated is the customer?"  # these three are the conformance suite's
TEAMS, LEVELS = ("Billing", "Technical", "Sales"), {"Calm": 0.0, "Frustrated": 0.5, "Very angry": 2.0}


def task(name: str, question: str | None, labels: tuple[str, ...] = (), **more: Any) -> Task:
    kind, metric = ("sequence-classification", "accuracy") if labels else ("regression", "pearson")
    own = Task(name, kind, DataSource(), "text", "label", metric, "maximize", (metric,), labels=labels)
    return replace(own, question=question, **more)


TASKS = [
    task("refund", REFUND, ("no", "yes")),
    task("team", TEAM, TEAMS),
    task("anger", ANGER, settings={"levels": LEVELS}),
    task("same", None, ("same", "other"), text_pair="second", settings={"true_label": "same"}),
    task("number", None),
    task("flag", None, ("False", "TRUE")),
    task("topics", None, ("money", "a bug"), kind="multi-label", metric="micro_f1", metrics=("micro_f1",)),
    task("stars", None, ("1", "2", "3"), kind="ordinal", metric="accuracy"),
]


@pytest.fixture(scope="module")
def adapters(registry, base, make_adapter, tmp_path_factory):
    """The folder of each task's adapter, registered."""
    folder, made = tmp_path_factory.mktemp("deciding"), {}
    for seed, own in enumerate(TASKS):
        made[own.name] = make_adapter(folder / own.name, base, task=own, seed=seed, rank=4)
        registry[1](made[own.name])
    return made


def started(registry, **more: Any) -> Server:
    models = ServedModels([own.name for own in TASKS], uri=registry[0])
    return Server(models, limits=Limits(body_bytes=100_000, rows=100, rows_at_once=8), **more)


@pytest.fixture(scope="module")
def deciding(registry, adapters):
    server = started(registry, routing=Routing({"urgent": "refund"}, ("jev-latest",)))
    with running(server) as url:
        yield Running(url, server, *registry)


def predicted(adapters, name: str, *text: str) -> Any:
    return Predictor(adapters[name])([text if len(text) > 1 else text[0]])[0]


def predicate(instructions: str = REFUND, **more: Any) -> dict[str, Any]:
    return {"type": "predicate", "instructions": instructions, **more}


def choice(*values: str | bool, instructions: str = TEAM, **more: Any) -> dict[str, Any]:
    return {"type": "choice", "instructions": instructions, "choices": [{"value": it} for it in values], **more}


def score(*levels: str, instructions: str = ANGER, **more: Any) -> dict[str, Any]:
    return {"type": "score", "instructions": instructions, "levels": [{"label": it} for it in levels], **more}


# ---- OpenAI's client -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["sync", "async"])
def test_questions_of_openais_client_are_answered_in_one_pass_as_predict_does(deciding, adapters, way):
    questions = [
        predicate(name="a"),
        choice(*TEAMS),
        choice("Sales", "Billing", name="few"),
        score(*LEVELS, name="b"),
        predicate("Is it raining?", name="c"),
        choice(True, False, instructions="?", name="flag"),
    ]
    before = deciding.server.engine.num_passes, deciding.server.engine.num_rows
    asked: dict[str, Any] = {"model": "loraxs", "input": TEXT, "questions": questions}

    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{deciding.url}/v1", api_key="none", max_retries=0) as client:
            return await client.decisions.create(**asked)

    if way == "async":
        found = asyncio.run(ask())
    else:
        with openai.OpenAI(base_url=f"{deciding.url}/v1", api_key="none", max_retries=0) as client:
            found = client.decisions.create(**asked)
    after = deciding.server.engine.num_passes, deciding.server.engine.num_rows
    assert (after[0] - before[0], after[1] - before[1]) == (1, 4), "questions of one task share a row"
    refund, team, few, anger, rain, flag = found.answers
    assert [own.name for own in found.answers] == ["a", None, "few", "b", "c", "flag"]
    assert refund.probability == pytest.approx(predicted(adapters, "refund", TEXT).probabilities["yes"], abs=1e-5)
    expected = predicted(adapters, "team", TEXT)
    assert close([own.probability for own in team.probabilities], expected.probabilities.values())
    assert (team.choice, team.x_task) == (expected.label, "team:1")
    assert team.confidence == pytest.approx((expected.score - 1 / 3) / (2 / 3), abs=1e-5)
    shares = [expected.probabilities[name] for name in ("Sales", "Billing")]
    assert close([own.probability for own in few.probabilities], [it / sum(shares) for it in shares])
    assert (few.x_restricted, hasattr(team, "x_restricted")) == (True, False)
    number = min(2.0, max(0.0, predicted(adapters, "anger", TEXT).score))
    assert [(own.label, own.value) for own in anger.probabilities] == [*zip(LEVELS, range(3), strict=True)]
    means = sum(own.probability * level for own, level in zip(anger.probabilities, LEVELS.values(), strict=True))
    assert means == pytest.approx(number, abs=1e-5)
    assert anger.score == pytest.approx(sum(own.probability * own.value for own in anger.probabilities))
    assert (rain.type, "no task" in rain.x_reason) == ("refusal", True)
    assert [own.value for own in flag.probabilities] == [True, False]
    assert flag.probabilities[0].probability == pytest.approx(
        predicted(adapters, "flag", TEXT).probabilities["TRUE"], abs=1e-5
    )
    alone = deciding.post("/v1/decisions", {**asked, "questions": [predicate()]}).json()["usage"]["input_tokens"]
    assert (found.usage.input_tokens, found.usage.output_tokens) == (4 * alone, 0)
    assert found.usage.total_tokens == 4 * alone


def test_errors_are_those_that_openais_client_knows(deciding):
    with openai.OpenAI(base_url=f"{deciding.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            client.decisions.create(model="nobody", input=TEXT, questions=[predicate()])
        with pytest.raises(openai.BadRequestError, match="images"):
            image = {"type": "input_image", "image_url": "data:image/png;base64,"}
            client.decisions.create(
                model="loraxs", input=[{"role": "user", "content": [image]}], questions=[predicate()]
            )


# ---- which task answers ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "asked", "answers"),
    [
        ("jev-latest", predicate(name="anything"), "refund"),
        ("loraxs", predicate(f" {REFUND}\n", name="team"), "refund"),
        ("loraxs", predicate("Is it?", name="urgent"), "refund"),
        ("loraxs", choice(*TEAMS, instructions="Who?", name="team"), "team"),
        ("team", choice(*TEAMS, instructions="Who?"), "team"),
        ("team@champion", choice(*TEAMS, instructions="Who?", name="urgent"), "team"),
        ("loraxs", predicate("Is it?"), "no task"),
        ("team", predicate(), "`true_label`"),
        ("loraxs", choice("Billing", "Nobody"), "'Nobody'"),
        ("loraxs", choice("Billing", True), "True"),
        ("flag", choice(True, "TRUE", instructions="?"), "different labels"),
        ("loraxs", score("Calm", "Angry"), "has 3 levels"),
        ("number", score("Calm", "Angry"), "has no levels"),
        ("anger", score("Very angry", "Frustrated", "Calm"), "in its order"),
        ("stars", score("0", "1", "2"), "in its order"),
        ("anger", score("calm", "Frustrated", "Furious"), "anger"),
        ("anger", choice(*LEVELS), "one label"),
        ("same", predicate(), "a JSON object with text and second"),
        ("topics", predicate("a bug", name="money"), "topics"),
        ("topics", predicate("?", name="money"), "topics"),
        ("topics", predicate("?"), "one of the labels money, a bug"),
        ("topics", choice("money", "a bug"), "several"),
        ("stars", score("bad", "so so", "good"), "stars"),
    ],
)
def test_a_question_finds_its_task_or_is_refused_with_the_reason(deciding, model, asked, answers):
    body = {"model": model, "input": TEXT, "questions": [asked]}
    (answer,) = deciding.post("/v1/decisions", body).json()["answers"]
    if "x_reason" in answer:
        assert answers in answer["x_reason"]
        assert answer["type"] == "refusal"
    else:
        assert answer["x_task"] == f"{answers}:1"


def test_two_tasks_of_one_question_answer_it_only_where_one_is_named(registry, base, make_adapter, tmp_path, caplog):
    for number, name in enumerate(("first", "second")):
        registry[1](make_adapter(tmp_path / name, base, task=task(name, "Is it?", ("no", "yes")), seed=number, rank=4))
    models = ServedModels(["first", "second"], uri=registry[0])
    with running(Server(models)) as url:
        assert "first and second have one question" in caplog.text
        for model, says in (("loraxs", "first and second"), ("second", "second:1")):
            body = {"model": model, "input": TEXT, "questions": [predicate("Is it?")]}
            (answer,) = requests.post(f"{url}/v1/decisions", json=body, timeout=60).json()["answers"]
            assert says in (answer.get("x_task") or answer["x_reason"])
    for wrong in (Routing({"a": "third"}), Routing({}, ("first",))):
        with pytest.raises(UsageError):
            Server(models, routing=wrong)


def test_labels_by_themselves_are_predicates_and_ordered_ones_are_levels(deciding, adapters):
    questions = [predicate("a bug"), predicate("?", name="money"), score("bad", "so so", "good", name="stars")]
    for model, asked in (("topics", questions[:2]), ("stars", questions[2:])):
        body = {"model": model, "input": TEXT, "questions": asked}
        answers, expected = deciding.post("/v1/decisions", body).json()["answers"], predicted(adapters, model, TEXT)
        if model == "topics":
            own = [expected.probabilities[label] for label in ("a bug", "money")]
            assert close([answer["probability"] for answer in answers], own)
        else:
            assert answers[0]["score"] == pytest.approx(expected.expected - 1, abs=1e-5)
            assert close([it["probability"] for it in answers[0]["probabilities"]], expected.probabilities.values())
        one, every = deciding.classify(model, TEXT), deciding.post(f"/classify/{model}", {"inputs": TEXT}).json()
        assert (one["data"][0]["label"], one["labels"]) == (expected.label, [*expected.probabilities])
        assert close(one["data"][0]["probs"], expected.probabilities.values())
        assert one["data"][0]["score"] == pytest.approx(expected.score, abs=1e-5)
        assert one["data"][0].get("expected") == pytest.approx(expected.expected, abs=1e-5)
        ranked = sorted(expected.probabilities.items(), key=lambda it: -it[1])
        assert [it["label"] for it in every] == [label for label, _ in ranked]
        assert close([it["score"] for it in every], [share for _, share in ranked])


# ---- what a task reads -----------------------------------------------------------------------------------------------
def said(*content: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": list(content)}


ONE, JSON_PART = {"type": "input_text", "text": "one"}, {"type": "input_json", "data": {"b": [1, "é"], "a": None}}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ([{"role": "user", "content": "one"}], "one"),
        ([said(ONE, {"type": "input_text", "text": "two"})], "one\ntwo"),
        ([said(JSON_PART)], '{"a":null,"b":[1,"é"]}'),
        ([said(ONE, JSON_PART)], 'one\n{"a":null,"b":[1,"é"]}'),
        ([said(ONE, role="system"), {"type": "message", **said(ONE)}], "system: one\nuser: one"),
        ([said({"type": "output_text", "text": "one"}, role="assistant")], "assistant: one"),
        ([said({"type": "input_json", "data": {"text": "one"}})], "one"),
        ('{"text": "one"}', "one"),
        ('{"text": "one", "more": 1}', '{"text": "one", "more": 1}'),
    ],
)
def test_messages_and_json_are_read_as_one_text(deciding, given, read):
    found = [
        deciding.post("/v1/decisions", {"model": "refund", "input": it, "questions": [predicate()]}).json()["answers"]
        for it in (given, read)
    ]
    assert close(*([own["probability"] for own in answers] for answers in found))


def test_an_object_with_the_columns_of_a_task_fills_them_and_long_texts_are_cut(deciding, adapters):
    pair = {"text": "one", "second": "another"}
    expected = predicted(adapters, "same", "one", "another").probabilities["same"]
    for given in ([said({"type": "input_json", "data": pair})], json.dumps(pair)):
        body = {"model": "same", "input": given, "questions": [predicate("?")]}
        (answer,) = deciding.post("/v1/decisions", body).json()["answers"]
        assert answer["probability"] == pytest.approx(expected, abs=1e-5)
        assert "x_truncated" not in answer
    state = {"model": "same", "state": pair, "questions": {"q": {"type": "noul"}}}
    answer = deciding.post("/v1/systemone", state).json()["answers"]["q"]
    assert answer["noul"] == pytest.approx(expected, abs=1e-5)
    body = {"model": "refund", "input": "word " * 500, "questions": [predicate()]}
    assert deciding.post("/v1/decisions", body).json()["answers"][0]["x_truncated"] is True


# ---- what is refused -------------------------------------------------------------------------------------------------
CALL = {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"}


@pytest.mark.parametrize(
    ("path", "changed", "status", "says"),
    [
        ("decisions", {"input": [CALL]}, 400, "function_call"),
        ("decisions", {"input": []}, 400, "a message"),
        ("decisions", {"input": [said()]}, 400, "a part"),
        ("decisions", {"input": "x" * 90_000 + "y"}, 200, ""),
        ("decisions", {"questions": []}, 422, "questions"),
        ("decisions", {"questions": [predicate()] * 101}, 413, "1 to 100"),
        ("decisions", {"questions": [choice("a", "a")]}, 400, "differ"),
        ("decisions", {"questions": [choice("a")]}, 422, "at least 2"),
        ("decisions", {"questions": [predicate([{"type": "input_image"}])]}, 400, "images"),
        ("decisions", {"stream": True}, 422, "stream"),
        ("systemone", {"questions": {}}, 422, "at least 1"),
        ("systemone", {"questions": {"": {"type": "noul"}}}, 422, "at least 1"),
        ("systemone", {"questions": {"a.b": {"type": "noul"}, "refund": {"type": "noul"}}}, 422, "a.b"),
        ("systemone", {"state": None}, 422, "state"),
        ("systemone", {"assets": {"a": 1}}, 400, "images"),
        ("systemone", {"model": "nobody"}, 404, "nobody"),
        ("systemone", {"questions": {str(n): {"type": "noul"} for n in range(101)}}, 413, "1 to 100"),
    ],
)
def test_what_cannot_be_decided_has_a_status_and_says_why(deciding, path, changed, status, says):
    body: dict[str, Any] = {"model": "loraxs", "input": TEXT, "questions": [predicate()]}
    if path == "systemone":
        body = {"model": "loraxs", "state": TEXT, "questions": {"q": {"type": "noul", "instructions": REFUND}}}
    response = deciding.post(f"/v1/{path}", body | changed)
    assert (response.status_code, says in response.text) == (status, True), response.text
    if path == "systemone":
        detail = response.json()["detail"]
        places = [own["loc"] for own in detail] if status == 422 else detail["error_type"]
        assert places if status != 422 else all(place[0] == "body" for place in places)


# ---- TypeSafe's clients and conformance ------------------------------------------------------------------------------
def test_the_client_of_langchain_reads_the_answers(deciding, adapters):
    client = pytest.importorskip("langchain_openai.decisions")
    with pytest.warns(match="in beta"):
        decisions = client.OpenAIDecisions(model="loraxs", api_key="none", base_url=f"{deciding.url}/v1")
    asked = {
        "same": client.Predicate(instructions="?"),
        "rain": client.Predicate(instructions="Is it raining?"),
        "team": client.Choice(instructions=TEAM, choices=dict.fromkeys(TEAMS)),
        "anger": client.Score(instructions=ANGER, levels=list(LEVELS)),
    }
    pair = {"text": "one", "second": "another"}  # which it sends as text
    found = decisions.invoke({"input": pair, "questions": asked})
    expected = predicted(adapters, "same", "one", "another").probabilities["same"]
    assert found.predicates["same"].probability == pytest.approx(expected, abs=1e-5)
    expected = predicted(adapters, "team", json.dumps(pair)).probabilities
    assert found.choices["team"].probabilities == pytest.approx(expected, abs=1e-5)
    assert found.scores["anger"].legend == dict(enumerate(LEVELS))
    assert [*found.refusals] == ["rain"]


def test_the_client_of_typesafe_reads_the_answers(deciding, adapters):
    typesafe = pytest.importorskip("typesafe_sdk")
    with typesafe.TypeSafeClient(api_key="none", base_url=deciding.url) as client:
        found = client.system_one(
            state=TEXT,
            questions={
                "질문": typesafe.Noul(instructions=REFUND),
                "team": typesafe.Choice(criteria=dict.fromkeys(TEAMS)),
                "b": typesafe.Score(instructions=ANGER, criteria=["Calm", {"a": 1}, "Very angry"]),
            },
        )
        assert found.nouls["질문"].noul == pytest.approx(
            predicted(adapters, "refund", TEXT).probabilities["yes"], abs=1e-5
        )
        assert close(
            found.choices["team"].probabilities.values(), predicted(adapters, "team", TEXT).probabilities.values()
        )
        assert found.scores["b"].legend == {0: "Calm", 1: '{"a":1}', 2: "Very angry"}
        assert {own.name for own in client.models.list().models} > {"refund", "loraxs", "jev-latest"}
        with pytest.raises(typesafe.TypeSafeUnprocessableEntityError, match="other"):
            client.system_one(state=TEXT, questions={"other": typesafe.Noul(instructions="Is it raining?")})


def test_without_a_fallback_the_conformance_suite_fails_only_where_no_task_was_trained_on_a_question(deciding):
    report = pytest.importorskip("jevcompat.runner").run(deciding.url, timeout=60)
    found = {own.id: own.findings[0].message for own in report.results if own.findings}
    bodies = {f"request.{name}" for name in ("unicode", "structured-text")}
    assert found.keys() == bodies | {"choice.options", "score.levels", "noul.no-instructions"}
    assert all("got 422" in message and '"no_task"' in message for message in found.values()), found


def test_the_conformance_suite_passes_where_a_fallback_answers_the_rest(registry, adapters):
    runner = pytest.importorskip("jevcompat.runner")
    mock = pytest.importorskip("jevcompat.mock")
    with mock.Running() as other:
        server = started(registry, routing=Routing({}, ("jev-latest",)), fallback=Fallback(other.url))
        with running(server) as url:
            report = runner.run(url, timeout=60)
    wrong = {own.id: str(own.findings[0]) for own in report.results if own.findings}
    assert (report.verdict, wrong) == ("conformant", {})
    assert server.engine.num_rows > 0


# ---- another server --------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def elsewhere(answer: Any):
    """Yield the address of a server that answers with a status and a body, and what it was asked."""
    heard = list[tuple[str, str | None, Any]]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append((self.path, self.headers["Authorization"], body))
            status, content = answer(body) if callable(answer) else answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", heard
        finally:
            server.shutdown()
            thread.join()


RAIN = {"input_tokens": 7, "output_tokens": 2}


def test_only_what_no_task_answers_goes_on_and_comes_back_in_its_place(registry, adapters, monkeypatch, caplog):
    monkeypatch.setenv("LORAXS_FALLBACK_KEY", "sesame")
    others = [{"type": "predicate", "probability": 0.25, "name": "c"}, {"type": "choice", "choice": "Nobody"}]
    with elsewhere((200, {"model": "x", "answers": others, "usage": RAIN})) as (url, heard):
        server = started(registry, routing=Routing({}, ("gpt-6-luna",)), fallback=Fallback(url))
        with running(server) as own:
            questions = [predicate("Is it raining?", name="c"), predicate(), choice("Billing", "Nobody", name="c")]
            body = {"model": "gpt-6-luna", "input": TEXT, "questions": questions}
            found = requests.post(f"{own}/v1/decisions", json=body, timeout=60).json()
            assert [answer.get("x_fallback", answer.get("x_task")) for answer in found["answers"]] == [
                True,
                "refund:1",
                True,
            ]
            assert heard == [("/v1/decisions", "Bearer sesame", {**body, "questions": [questions[0], questions[2]]})]
            alone = requests.post(f"{own}/v1/decisions", json={**body, "questions": [questions[1]]}, timeout=60).json()
            assert found["usage"]["input_tokens"] == alone["usage"]["input_tokens"] + 7
            assert (found["usage"]["output_tokens"], len(heard)) == (2, 1)
            one = requests.post(f"{own}/v1/decisions", json={**body, "model": "refund"}, timeout=60).json()
            assert [answer["type"] for answer in one["answers"]] == ["predicate", "predicate", "refusal"]
            assert len(heard) == 1, "what is asked of one task is for nobody else"
            questions[0]["name"] = "d"  # whose answer has another name: the answers are in another order
            wrong = requests.post(f"{own}/v1/decisions", json=body, timeout=60)
            assert (wrong.status_code, "none to these" in wrong.text) == (502, True)
    assert "raining" not in caplog.text
    assert "sesame" not in caplog.text


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((500, {}), 502),
        ((401, {}), 502),
        ((302, {}), 502),
        ((429, b"<html>"), 429),
        ((422, {"detail": [{"msg": "odd"}]}), 422),
        ((200, b"{"), 502),
        ((200, {"answers": {}}), 502),
        ((200, {"answers": {"q": {"type": "noul", "noul": float("nan")}}, "usage": {}}), 502),
        ((200, {"answers": {"q": {"type": "choice", "choice": "a"}}, "usage": {}}), 502),
        ((200, {"answers": {"q": {}}, "usage": {}}), 502),
        ((200, {"answers": {"q": {"type": "noul", "noul": 0.5}}, "usage": {}}), 200),
        (None, 502),
        ("slow", 504),
    ],
)
def test_faults_of_another_server_are_told_apart(registry, adapters, answer, status):
    done = threading.Event()

    def slow(_: Any) -> Any:
        done.wait()
        return 200, {}

    with elsewhere(slow if answer == "slow" else answer or (200, {})) as (url, _):
        fallback = Fallback("http://127.0.0.1:1" if answer is None else url, timeout_s=0.2 if answer == "slow" else 60)
        with running(started(registry, fallback=fallback)) as own:
            body = {"model": "loraxs", "state": TEXT, "questions": {"q": {"type": "noul", "instructions": "Rain?"}}}
            response = requests.post(f"{own}/v1/systemone", json=body, timeout=60)
        done.set()
    assert response.status_code == status, response.text


# ---- confidence ------------------------------------------------------------------------------------------------------
SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(sum)


@hypothesis.given(SHARES)
def test_confidence_is_by_the_formulas_of_the_conformance_suite(shares):
    validate = pytest.importorskip("jevcompat.validate")
    shares = [share / sum(shares) for share in shares]
    for kind, formula in (("choice", validate.choice_confidence), ("score", validate.score_confidence)):
        own = Decision(Question(0, None, kind, ""), shares).confidence
        assert own == pytest.approx(formula(shares))


# ---- labels of texts -------------------------------------------------------------------------------------------------
def test_all_labels_come_as_a_pipeline_of_transformers_gives_them(deciding, adapters):
    expected = predicted(adapters, "team", TEXT).probabilities
    one = deciding.post("/classify/team", {"inputs": TEXT}).json()
    assert [own["label"] for own in one] == sorted(TEAMS, key=lambda label: -expected[label])
    assert close([own["score"] for own in one], [expected[own["label"]] for own in one])
    for own in deciding.post("/classify/team@champion", {"inputs": [TEXT, {"text": TEXT}]}).json():
        assert [each["label"] for each in own] == [each["label"] for each in one]
        assert close([each["score"] for each in own], [each["score"] for each in one])
    for name, body, status, param in (
        ("number", {"inputs": TEXT}, 400, "task"),
        ("nobody" * 99, {"inputs": TEXT}, 404, "model"),
        ("team", {}, 422, "inputs"),
        ("team", {"inputs": []}, 400, "inputs"),
    ):
        error = deciding.post(f"/classify/{name}", body).json()["error"]
        assert (error["code"], error["param"]) == (status, param)


# ---- keys ------------------------------------------------------------------------------------------------------------
def test_a_key_that_is_limited_to_tasks_knows_no_others(registry, adapters):
    keys = {"a": frozenset({"refund"}), "b": frozenset({"team"}), "every": frozenset()}
    with running(started(registry, keys=keys)) as url:

        def ask(key: str, path: str, body: Any = None) -> requests.Response:
            headers = {"authorization": f"Bearer {key}"}
            return requests.request("POST" if body else "GET", url + path, json=body, headers=headers, timeout=60)

        for name in ("team", "team@champion", "team:1", "team:77", "nobody", "no name", "refund:99"):
            bodies = {
                "/classify": {"model": name, "input": TEXT},
                f"/classify/{name}": {"inputs": TEXT},
                "/v1/completions": {"model": name, "prompt": TEXT},
                "/v1/chat/completions": {"model": name, "messages": [{"role": "user", "content": TEXT}]},
                "/v1/decisions": {"model": name, "input": TEXT, "questions": [predicate()]},
                "/v1/systemone": {"model": name, "state": TEXT, "questions": {"q": {"type": "noul"}}},
            }
            for path, body in bodies.items():
                response = ask("a", path, body)
                assert response.status_code == 404, path
                law = f"There is no model {name!r}: `GET /v1/models` lists those served."
                error = response.json()
                assert (error["detail"] if "detail" in error else error["error"])["message"] == law
        assert ask("a", "/classify", {"model": "refund", "input": TEXT}).ok
        assert "GET /v1/models" in ask("every", "/classify", {"model": "no name", "input": TEXT}).text
        listed = ask("a", "/v1/models").json()
        assert {own["id"] for own in listed["data"]} == {"refund"}
        assert {own["name"] for own in listed["models"]} == {"refund", "loraxs"}
        assert {"refund", "team"} <= {own["id"] for own in ask("every", "/v1/models").json()["data"]}
        assert (ask("a", "/metrics").status_code, ask("every", "/metrics").status_code) == (404, 200)
        body = {"model": "loraxs", "input": TEXT, "questions": [predicate(name="q"), choice(*TEAMS, name="team")]}
        kinds = {key: [answer["type"] for answer in ask(key, "/v1/decisions", body).json()["answers"]] for key in keys}
        assert kinds == {"a": ["predicate", "refusal"], "b": ["refusal", "choice"], "every": ["predicate", "choice"]}
        assert "team" not in ask("a", "/v1/decisions", body).json()["answers"][1]["x_reason"]
        refused = requests.post(f"{url}/v1/systemone", json={}, timeout=60)
        assert (refused.status_code, refused.json()["detail"]["error_type"]) == (401, "authentication_error")


# ---- anything --------------------------------------------------------------------------------------------------------
NAMES = st.sampled_from(["refund", "team", "\ud800", "", "urgent"]) | VALUES
SOURCES = st.sampled_from([TEXT, " ", '{"text": NaN}', '{"text": "\\ud800"}', "[" * 3000]) | VALUES
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["input_text", "input_json"]) | VALUES}, optional={"text": SOURCES, "data": VALUES}
)
INPUTS = SOURCES | st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system"]), "content": SOURCES | st.lists(PARTS, max_size=3)}
    ),
    max_size=3,
)
WORDS = st.sampled_from([REFUND, TEAM, ANGER]) | st.lists(PARTS, max_size=2) | VALUES


@hypothesis.given(
    model=st.sampled_from(["loraxs", "refund", "team", "anger", "same"]),
    given=INPUTS,
    questions=st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["predicate", "choice", "score"]), "instructions": WORDS},
            optional={
                "name": NAMES,
                "choices": st.lists(
                    st.fixed_dictionaries({"value": st.sampled_from([*TEAMS, True]) | VALUES}), max_size=4
                ),
                "levels": st.lists(st.fixed_dictionaries({"label": NAMES}), max_size=4),
            },
        ),
        max_size=4,
    ),
)
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
def test_any_questions_of_openais_form(deciding, model, given, questions):
    response = deciding.post("/v1/decisions", {"model": model, "input": given, "questions": questions})
    assert response.status_code < 500, response.text
    assert response.json()


@hypothesis.given(
    model=st.sampled_from(["loraxs", "refund", "team", "anger", "same"]),
    state=SOURCES,
    questions=st.dictionaries(
        st.sampled_from(["refund", "team", "anger", "\ud800"]) | st.text(max_size=3),
        st.fixed_dictionaries(
            {"type": st.sampled_from(["noul", "choice", "score"])},
            optional={
                "instructions": WORDS,
                "criteria": st.dictionaries(st.sampled_from([*TEAMS, "true", "\ud800"]), VALUES, max_size=4)
                | st.lists(NAMES, max_size=4)
                | VALUES,
            },
        ),
        max_size=3,
    ),
)
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
def test_any_questions_of_typesafes_form(deciding, model, state, questions):
    response = deciding.post("/v1/systemone", {"model": model, "state": state, "questions": questions})
    assert response.status_code < 500, response.text
    assert response.json()
