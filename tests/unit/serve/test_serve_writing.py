"""A server of adapters that write: rows of any of them join and leave between tokens, and each is written as alone."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
from support.bases import characters
from support.pages import CLUSTER
from support.trials import written_by

from loraxs_search import AdapterBank
from loraxs_search.engine import generation
from loraxs_search.records.task import TaskModel
from loraxs_search.registry.store import Registry
from loraxs_search.serve import engine as serving_engine
from loraxs_search.serve.app import Server
from loraxs_search.serve.bodies import ChatBody, ClassifyBody, CompletionBody, Limits
from loraxs_search.serve.engine import Job, ServingEngine
from loraxs_search.serve.served_models import ServedModels
from loraxs_search.tasks.encoded import RowSource
from loraxs_search.tasks.kinds import Sampling

from .conftest import running

PROMPTS = ["say w1 w2", "say w3", "say w4 w5 w6 w7", "say w8 w9"]


@pytest.fixture(scope="module")
def bank(decoder):
    bank = AdapterBank(decoder.server.models.base, task_model=TaskModel("AutoModelForCausalLM"))
    for name in ("one", "two", "listed", "talking"):
        bank.load(name, name, tracking_uri=decoder.uri)
    return bank


@pytest.fixture
def client(decoder):
    with openai.OpenAI(base_url=f"{decoder.url}/v1", api_key="none", max_retries=0) as client:
        yield client


# ---- texts -----------------------------------------------------------------------------------------------------------
def test_completions_are_what_a_bank_writes_and_name_their_adapter(client, decoder, bank):
    answer = client.completions.create(model="one", prompt=PROMPTS)
    assert [choice.text for choice in answer.choices] == written_by(bank, ["one"] * 4, PROMPTS)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 3 + 2 + 5 + 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert {choice.finish_reason for choice in answer.choices} <= {"stop", "length"}
    assert answer.system_fingerprint == Registry(decoder.uri).resolve("one").digest
    base = decoder.server.models.base.id
    bare = client.completions.create(model=base, prompt=PROMPTS, max_tokens=5)
    assert [choice.text for choice in bare.choices] == written_by(bank, [None] * 4, PROMPTS, 5)
    response = decoder.post("/v1/completions", {"model": base, "prompt": "w1", "max_tokens": 1})
    assert response.headers["x-loraxs-digest"] == bare.system_fingerprint != answer.system_fingerprint


def test_rows_of_several_adapters_that_come_at_any_time_are_written_as_alone(client, bank):
    wanted = [(model, prompt, length) for length in (3, 9, 20) for prompt in PROMPTS for model in ("one", "two")]
    alone = [written_by(bank, [model], [prompt], length)[0] for model, prompt, length in wanted]

    def ask(model, prompt, length):
        return client.completions.create(model=model, prompt=prompt, max_tokens=length).choices[0].text

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, *zip(*wanted, strict=True))) == alone


def test_a_stream_has_the_same_texts_in_pieces(client, bank):
    texts, options = [""] * 4, {"include_usage": True}
    *chunks, last = client.completions.create(model="one", prompt=PROMPTS, stream=True, stream_options=options)
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == written_by(bank, ["one"] * 4, PROMPTS)
    assert len(chunks) > 8
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert len({chunk.id for chunk in chunks}) == 1
    assert (last.choices, last.usage.prompt_tokens) == ([], 13)


def test_draws_follow_from_the_seed_and_stop_strings_end_a_text(client, bank):
    given = {"prompt": PROMPTS[0], "max_tokens": 9, "temperature": 1.5, "top_p": 0.9}
    drawn = [client.completions.create(model="one", **given, seed=seed).choices[0].text for seed in (1, 2, 3)]
    assert len(set(drawn)) > 1
    assert drawn[0] == written_by(bank, ["one"], PROMPTS[:1], 9, sampling=Sampling(1, 1.5, 0.9))[0]
    several = client.completions.create(model="one", prompt=PROMPTS[:2], n=3, max_tokens=9, temperature=1.5, seed=1)
    assert len(several.choices) == 6
    assert len({choice.text for choice in several.choices[:3]}) > 1
    assert several.usage.prompt_tokens == 5
    whole = written_by(bank, ["one"], PROMPTS[:1], 12)[0]
    word = whole.split()[2]
    (choice,) = client.completions.create(model="one", prompt=PROMPTS[0], max_tokens=12, stop=word).choices
    assert (choice.text, choice.finish_reason) == (whole.partition(word)[0], "stop")


def test_messages_go_through_the_chat_template(client, bank):
    messages = [{"role": "user", "content": "say w1 w2"}]
    answer = client.chat.completions.create(model="talking", messages=messages)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == written_by(bank, ["talking"], ["say w1 w2 "])[0]
    chunks = list(client.chat.completions.create(model="talking", messages=messages, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content != ""
    stop = text.split()[0]
    empty = list(client.chat.completions.create(model="talking", messages=messages, stream=True, stop=stop))
    assert [chunk.choices[0].delta.role for chunk in empty] == ["assistant", None]
    short = client.chat.completions.create(model="talking", messages=messages, max_completion_tokens=3)
    assert short.usage.completion_tokens <= 3


def test_what_openai_clients_send_and_needs_nothing_is_taken(client, decoder):
    plain = client.chat.completions.create(model="talking", messages=[{"role": "user", "content": "say w1\nw2"}])
    parts = [{"type": "text", "text": "say w1"}, {"type": "text", "text": "w2"}]
    answer = client.chat.completions.create(
        model="talking", messages=[{"role": "user", "content": parts}], response_format={"type": "text"},
        tool_choice="none", tools=[], parallel_tool_calls=False, modalities=["text"], logit_bias={}, store=False,
        metadata={"from": "test"}, service_tier="auto", safety_identifier="x", prompt_cache_key="x", user="x",
        logprobs=False,
    )  # fmt: skip
    assert answer.choices[0].message.content == plain.choices[0].message.content
    earlier = [{"role": "user", "content": "say w1"}, answer.choices[0].message.model_dump()]
    assert client.chat.completions.create(model="talking", messages=[*earlier, {"role": "user", "content": "say w3"}])
    schemas = decoder.get("/openapi.json").json()["components"]["schemas"]
    for limit in ("minimum", "maximum"):  # the largest seed of the description is taken
        (seed,) = (own[limit] for own in schemas["CompletionBody"]["properties"]["seed"]["anyOf"] if limit in own)
        body = {"model": "one", "prompt": "w1", "temperature": 1, "seed": int(float(seed))}
        assert decoder.post("/v1/completions", body).status_code == 200


def test_rows_that_choose_and_write_are_answered_as_predict_does(decoder, bank):
    rows = [("w1 w2", ["w1", "w2 w3"]), ("w4", ["w5", "w6", "w7"])]
    answer = decoder.classify("listed", [{"words": words, "choices": options} for words, options in rows])
    expected = bank.predict("listed", rows)
    assert [one["label"] for one in answer["data"]] == [one.label for one in expected]
    assert [one["score"] for one in answer["data"]] == pytest.approx([one.score for one in expected], abs=1e-5)
    written = decoder.classify("two", [{"first": "w1", "second": "w2"}])["data"][0]["label"]
    assert written == bank.predict("two", [("w1", "w2")])[0].label


def test_the_page_asks_as_it_says(decoder, bank, capsys):
    (block,) = [block for block in CLUSTER.blocks("python") if "openai" in block]
    here = block.replace("http://127.0.0.1:8000", decoder.url).replace("movie-reviews-text", "one")
    exec(compile(here, CLUSTER.path, "exec"), {})
    prompts = ["Review: a moving film\nSentiment:", "Review: so so\nSentiment:"]
    whole, streamed = written_by(bank, ["one"] * 2, prompts)
    assert capsys.readouterr().out == f"{whole} {Registry(decoder.uri).resolve('one').digest}\n{streamed}"


# ---- in mid-flight ---------------------------------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def computing(models, **limits):
    """Yield an engine that computes until the end."""
    engine = ServingEngine(models.bank, models.load, **limits)
    engine.start()
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)


def held(until):
    """Return a job that holds up the computing thread."""

    def hold(_):
        until.wait()
        yield from ()

    return Job(None, 1, hold)


def written_while_another_is(decoder, prompt, on_step=lambda _: None):
    """Return what comes of two jobs, of which the first one's listener, in the computing thread, submits the second."""
    adapter = decoder.server.models.look_up("one")

    async def ask():
        async with computing(decoder.server.models) as engine:
            (first,), (second,) = (
                CompletionBody(model="one", stop=["never"], prompt=text, max_tokens=count).jobs(adapter, Limits())
                for text, count in (("say w1", 40), (prompt, 3))
            )
            second.on_text = lambda _, __: on_step(engine.num_tokens)
            waiting = [second]

            def submit(_, __):
                if waiting:
                    on_step(engine.num_tokens)
                    engine.submit([waiting.pop()])

            first.on_text = submit
            engine.submit([first])
            found = await asyncio.gather(first.result, second.result, return_exceptions=True)
        return [one if isinstance(one, Exception) else one.text for one in found]

    return asyncio.run(ask())


def test_rows_that_wait_to_be_written_count_as_waiting(decoder):
    body = {"model": "one", "prompt": "say w1", "max_tokens": 50, "stop": ["never"]}
    limits = Limits(rows_at_once=2, waiting_rows=4)
    with running(Server(ServedModels(["one"], uri=decoder.uri), limits=limits)) as url, ThreadPoolExecutor(40) as pool:
        asked = list(pool.map(lambda _: requests.post(f"{url}/v1/completions", json=body, timeout=60), range(80)))
    assert {answer.status_code for answer in asked} == {200, 429}
    assert {answer.headers.get("retry-after") for answer in asked} == {None, "1"}


def test_whoever_asks_nothing_is_never_one_too_many(decoder):
    """`/health` does so: a request may be larger than the queue where nothing else waits."""

    async def ask():
        go_on = threading.Event()
        async with computing(decoder.server.models, max_rows=1, max_waiting=1) as engine:
            engine.submit(jobs := [held(go_on) for _ in range(4)])
            try:
                engine.submit(())
            finally:
                go_on.set()
                await asyncio.gather(*(job.result for job in jobs))

    asyncio.run(ask())


def answered_in_order(models, bodies):
    """Return the numbers of requests in the order of their answers; all wait before the first one is computed."""

    async def ask():
        all_wait, order = threading.Event(), []
        async with computing(models, max_rows=8) as engine:
            engine.submit([held(all_wait)])
            try:
                for number, body in enumerate(bodies):
                    jobs = body.jobs(models.find(body.model), Limits(rows_at_once=8))
                    engine.submit(jobs)
                    answers = asyncio.gather(*(job.result for job in jobs))
                    answers.add_done_callback(lambda _, number=number: order.append(number))
            finally:
                all_wait.set()  # else the engine would never end
            await answers
        return order

    return asyncio.run(ask())


def test_a_short_text_is_not_behind_long_ones_that_wait_for_space(decoder, monkeypatch):
    """Four chats may fill the batch, each up to the context's 64 tokens, and a fifth one waits."""
    monkeypatch.setattr(serving_engine, "WRITING_TOKENS", 4 * 64)
    base = decoder.server.models.base.id
    chat = ChatBody(model=base, messages=[{"role": "user", "content": "say w1"}], stop=["never"])
    short = CompletionBody(model=base, prompt="say w2", max_tokens=2)
    longer = CompletionBody(model=base, prompt="say w2", max_tokens=62, stop=["never"])
    assert answered_in_order(decoder.server.models, [chat] * 5 + [longer, short])[0] == 6


def test_long_texts_share_the_space_and_those_that_are_put_back_are_written_as_alone(decoder, bank, monkeypatch):
    """There is space for two whole ones: four begin, and the last ones wait in the middle."""
    monkeypatch.setattr(serving_engine, "WRITING_TOKENS", 2 * 64)
    monkeypatch.setattr(serving_engine, "NEXT_TOKENS", 8)
    models, pieces = decoder.server.models, list[int]()

    async def ask():
        bodies = [CompletionBody(model="one", prompt=f"say w{n}", max_tokens=60, stop=["never"]) for n in range(4)]
        jobs = [job for body in bodies for job in body.jobs(models.look_up("one"), Limits())]
        for number, job in enumerate(jobs):
            job.on_text = lambda _, __, number=number: pieces.append(number)
        async with computing(models) as engine:
            engine.submit(jobs)
            return [(await job.result).text for job in jobs]

    alone = [written_by(bank, ["one"], [f"say w{n}"], 60, stop=("never",))[0] for n in range(4)]
    assert asyncio.run(ask()) == alone
    after = pieces[len(pieces) - pieces[::-1].index(0) :]
    assert set(pieces[:10]) == {0, 1, 2, 3}
    assert after.count(1) <= 1
    assert after.count(3) > 5


def test_one_row_is_not_behind_all_rows_and_options_of_a_large_request(decoder):
    many = [{"words": "w1", "choices": [f"w{n}" for n in range(8)]}] * 10
    bodies = [ClassifyBody(model="listed", input=rows) for rows in (many, many[:1], many[:1])]
    assert answered_in_order(decoder.server.models, bodies)[:2] == [1, 2]


def test_a_row_that_joins_others_begins_at_once_and_ends_none_where_it_cannot(decoder, bank, monkeypatch):
    """The second job's prompt fails while the first one is written; a sound one has its first token in two steps."""
    steps = []
    texts = written_while_another_is(decoder, "say w2", steps.append)
    assert texts == [written_by(bank, ["one"], [f"say w{n}"], count)[0] for n, count in ((1, 40), (2, 3))]
    assert steps[1] - steps[0] <= 2
    read = generation._read_prompts

    def failing(base, prompts, owners, worker):
        if len(prompts[0]) == 3:
            raise ValueError("no such prompt")
        return read(base, prompts, owners, worker)

    monkeypatch.setattr(generation, "_read_prompts", failing)
    text, error = written_while_another_is(decoder, "say w2 w3")
    assert text == written_by(bank, ["one"], ["say w1"], 40)[0]
    assert isinstance(error, ValueError)


def test_when_the_computing_thread_ends_everybody_is_told(decoder, monkeypatch):
    models = ServedModels(["one"], uri=decoder.uri)
    with running(server := Server(models)) as url:
        monkeypatch.setattr(server.engine, "_write", lambda: 1 / 0)
        body = {"model": "one", "prompt": "say w1"}
        for _ in range(2):
            assert requests.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 503
        assert requests.get(f"{url}/health", timeout=60).status_code == 503


def test_a_stream_whose_client_hangs_up_is_written_no_further(decoder):
    engine = decoder.server.engine
    body = {"model": "one", "prompt": "say w1", "max_tokens": 60, "stream": True, "stop": ["never"]}
    for _ in range(3):
        with requests.post(f"{decoder.url}/v1/completions", json=body, stream=True, timeout=60) as response:
            next(response.iter_lines())
    while engine._writers or engine._joining:
        time.sleep(0.01)
    assert decoder.post("/v1/completions", {"model": "one", "prompt": "say w1"}).ok


# ---- what is refused -------------------------------------------------------------------------------------------------
USER = {"role": "user", "content": "w1"}
REFUSED = [
    ("completions", {"model": "one", "prompt": ""}, 400, "token"),
    ("completions", {"model": "one", "prompt": []}, 400, "has 0"),
    ("completions", {"model": "one", "prompt": "w1 " * 80}, 400, "at most 64 tokens"),
    ("completions", {"model": "one", "prompt": "w1", "stop": [""]}, 422, "must be texts"),
    ("completions", {"model": "one", "prompt": "w1", "presence_penalty": 1}, 422, "presence_penalty"),
    ("completions", {"model": "one", "prompt": "\ud800"}, 400, ""),
    ("completions", {"model": "one", "prompt": ["w1", "x" * 200_001]}, 413, "prompt 2 has 200,001"),
    ("completions", {"model": "one", "prompt": "w1", "stop": ["x"] * 17}, 413, "16 strings"),
    ("completions", {"model": "one", "prompt": "w1", "stop": "x" * 257}, 413, "256 characters"),
    ("completions", {"model": "listed", "prompt": "w1"}, 400, "use /classify"),
    ("chat/completions", {"model": "one", "messages": []}, 422, "messages"),
    ("chat/completions", {"model": "one", "messages": [USER]}, 400, "say {words}"),
    ("chat/completions", {"model": "talking", "messages": [USER | {"content": "x" * 200_001}]}, 413, "200,"),
    ("chat/completions", {"model": "talking", "messages": [USER], "top_logprobs": 2}, 422, "top_logprobs"),
]


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_written_has_a_status_and_a_sentence(stream, decoder):
    for path, body, status, says in REFUSED:
        response = decoder.post(f"/v1/{path}", {"stream": stream, **body})
        assert (response.status_code, says in response.json()["error"]["message"]) == (status, True), (body, says)


def test_rows_of_options_that_cannot_be_answered_are_named(decoder):
    rows = [{"words": "w1", "choices": ["w2", "w3"]}] * 9 + [{"words": "w1", "choices": ["w2", "w3 " * 40]}]
    assert "(row 10)" in decoder.classify("listed", rows)["error"]["message"]
    many, long = {"words": "w1", "choices": ["w2"] * 257}, {"words": "x" * 200_000, "choices": ["w1", "w2"]}
    for row, says in ((many, "256 options"), (long, "row 1 has 200,0")):
        answer = decoder.post("/classify", {"model": "listed", "input": row})
        assert (answer.status_code, says in answer.json()["error"]["message"]) == (413, True)
    brackets = {"words": "w1", "choices": "[" * 100_000}  # JSON's reader gives up on them with an error of its own
    assert decoder.post("/classify", {"model": "listed", "input": brackets}).status_code == 400
    response = decoder.post("/classify", {"model": decoder.server.models.base.id, "input": "w1"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")


def test_a_rendered_chat_begins_once():
    source = RowSource(characters(begins=True))

    async def prompts():  # jobs belong to a loop
        jobs = CompletionBody(model="base", prompt=["ab", "<s>ab"]).jobs(None, Limits())
        return [next(job.asking(source)).source.ids.row(0).tolist() for job in jobs]

    plain, rendered = asyncio.run(prompts())
    assert plain == rendered == [2, *source.tokenizer.convert_tokens_to_ids(["a", "b"])]
