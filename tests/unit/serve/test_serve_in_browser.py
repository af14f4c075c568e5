"""The page of a server computes in a real browser what the server does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import regex
import requests
from support.browsers import CHROMIUM, chromium
from tokenizers import ByteLevelBPETokenizer, processors
from transformers import PreTrainedTokenizerFast

from loraxs_search.base_model import load_tokenizer
from loraxs_search.records import DataSource, Task
from loraxs_search.serve import app
from loraxs_search.serve.app import Server
from loraxs_search.serve.onnx_files import reading
from loraxs_search.serve.served_models import ServedModels
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tasks.rows import Rows

from .conftest import running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's package chromium"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm, for `make web`"),
]
TEXTS = [
    "a moving, funny film",
    "two hours I will never get back",
    "An ÉTUDE… 12.5% “naïve”, don't!\n\t你好 мир 😀 [MASK] ",
    "so long, and so very dull. " * 300,
]
CLASSIFY = """([model, texts]) => import("./web/in_browser.mjs").then((own) => own.classify(model, texts, get))"""


@pytest.fixture(scope="module")
def browser():
    assert (app.WEB / "vendor").is_dir(), "run `make web` first"
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser):
    """A page that keeps the paths of what it fetched in `asked`."""
    opened = browser.new_page()
    opened.set_default_timeout(120_000)
    opened.asked = []
    opened.on("request", lambda request: opened.asked.append(request.url.split("/", 3)[3]))
    yield opened
    opened.context.close()


def describe(encoder, model):
    """Return what the server says of a model, once it has exported its champion: that may start a process."""
    return requests.get(f"{encoder.url}/onnx?model={model}", timeout=300).json()


@pytest.fixture(scope="module", autouse=True)
def exported(encoder):
    for model in ("task-1", "task-2", "task-3"):
        assert describe(encoder, model)["files"]


def switch(page, on="Texts stay in this browser."):
    page.click("#here")
    page.wait_for_function("(said) => document.querySelector('#why').textContent.startsWith(said)", arg=on)


def check(page, encoder, model, texts):
    for text in texts:
        here, there = page.evaluate(CLASSIFY, [model, [text]]), encoder.classify(model, text)
        own, expected = here["data"][0], there["data"][0]
        assert here["system_fingerprint"] == there["system_fingerprint"]
        assert own["label"] == expected["label"]
        assert own["score"] == pytest.approx(expected["score"], abs=1e-4)
        assert own["probs"] == pytest.approx(expected["probs"], abs=1e-4)


def test_champions_are_switched_by_their_inputs(encoder, folders, page):
    page.goto(encoder.url)
    page.select_option("#model", "task-2")
    switch(page)
    for model in ("task-2", "task-3", "task-1"):
        check(page, encoder, model, TEXTS)
    graph = describe(encoder, "task-2")["files"]["model.onnx"]
    page.asked.clear()
    digest = encoder.promote(folders["two-again"])
    while encoder.classify("task-2", TEXTS[0])["system_fingerprint"] != digest:
        pass
    inputs = describe(encoder, "task-2")["files"]["adapter.safetensors"]
    page.fill("textarea", TEXTS[0])
    page.click("button")
    page.wait_for_function("(digest) => document.querySelector('small').textContent.includes(digest)", arg=digest)
    assert "in this browser" in page.inner_text("small")
    shown = [float(row.inner_text().split("\n")[1]) for row in page.query_selector_all(".bar")]
    assert shown == pytest.approx(encoder.classify("task-2", TEXTS[0])["data"][0]["probs"], abs=1e-3)
    assert page.asked == ["onnx?model=task-2", f"onnx/{inputs}?model=task-2"]
    check(page, encoder, "task-2", TEXTS)
    assert not [path for path in page.asked if graph in path or path == "classify"]
    page.fill("textarea", "  ")
    page.click("button")
    page.wait_for_selector("[role=alert]")


def answer(body, route):
    route.fulfill(body=json.dumps(body))


def test_why_it_does_not_compute_is_said(encoder, decoder, page):
    page.goto(decoder.url)
    page.select_option("#model", "one")
    switch(page, "Not in this browser: It must give one answer for a row, but one is of kind text-generation.")
    assert not page.is_checked("#here")
    about = describe(encoder, "task-2")
    cut = {**about["examples"][2], "input_ids": about["examples"][2]["input_ids"][:-1]}
    page.goto(encoder.url)
    page.select_option("#model", "task-2")
    for changed, why in (
        ({"answer": {"score": 0.1, "probs": [0.9, 0.1]}}, "This browser computes otherwise"),
        ({"examples": [about["examples"][0]] * 2 + [cut]}, "This browser reads texts otherwise"),
        ({"files": dict.fromkeys(about["files"], "0" * 64)}, "task-2 has no file of this sha256 now"),
    ):
        page.route("**/onnx?*", partial(answer, about | changed))
        switch(page, f"Not in this browser: {why}")
        assert not page.is_checked("#here")
    page.unroute("**/onnx?*")
    switch(page)


def test_it_answers_behind_keys_and_while_the_server_is_away(encoder, page):
    server = Server(ServedModels(["task-3"], uri=encoder.uri), keys=["sesame"])
    with running(server) as url:
        page.goto(url)
        page.fill("#key", "sesame")
        page.press("#key", "Tab")
        page.wait_for_selector("#model option", state="attached")
        switch(page)
        check(page, encoder, "task-3", TEXTS[:1])
    page.fill("textarea", TEXTS[1])
    page.click("button")
    page.wait_for_selector(".bar")
    check(page, encoder, "task-3", TEXTS[1:])
    page.click("#here")
    page.click("button")
    page.wait_for_selector("[role=alert]")


def test_without_what_make_web_brings_the_switch_is_hidden(encoder, page, tmp_path, monkeypatch):
    page.goto(encoder.url)
    page.wait_for_selector("#here")
    monkeypatch.setattr(app, "WEB", tmp_path)
    with running(Server(ServedModels(["task-3"], uri=encoder.uri))) as url:
        page.goto(url)
        page.wait_for_selector("#model option", state="attached")
        assert page.is_hidden("#here")
        assert page.request.get(f"{url}/web/in_browser.mjs").status == 404


# ---- tokens ----------------------------------------------------------------------------------------------------------
OPEN = """async (files) => {
  const { Tokenizer } = await import("./web/vendor/tokenizers.min.mjs");
  window.tokenizer = new Tokenizer(...files);
}"""
TOKENS = """async ([about, rows]) => {
  const own = await import("./web/in_browser.mjs");
  return JSON.stringify(rows.map((row) => own.tokens({ about, tokenizer }, row)));
}"""
ODD_CHARACTERS = regex.compile(r"[\p{No}\p{Nl}\ufeff\u0085]")
ODD = [
    *TEXTS[:3],
    "",
    "w",
    "don't can't I'll we're 'tis",
    "a  b   c\n\nd",
    "x" * 150,
    "ünï ÀÉÎ ﬁ ½ ①",
    "日本語テキスト",
    "👩‍👩‍👧‍👦 e\u0301",
    "\u200b\xa0\ufeff|",
    "</s><s>[SEP]",
    "1234567890 3.14",
    "a\x00b\x7f\x85c",
]


TASK = Task(
    "it", "sequence-classification", DataSource(), "text", "label", "accuracy", "maximize", ("accuracy",),
    labels=("no", "yes"), settings={"pair_separator": "\n"},
)  # fmt: skip


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer such as RoBERTa's, which has learnt from our texts."""
    learnt = ByteLevelBPETokenizer()
    learnt.train_from_iterator(
        ODD * 3, 600, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    ends = [(token, learnt.token_to_id(token)) for token in ("</s>", "<s>")]
    learnt.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=learnt._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.mark.parametrize("family", ["bert", "byte-level", "smollm2"])
def test_texts_are_read_as_the_server_reads_them(family, encoder, page, quickstart_base, smollm2, tmp_path):
    bases = {"bert": quickstart_base, "smollm2": smollm2}
    tokenizer = load_tokenizer(bases[family]) if family in bases else byte_level()
    tokenizer.save_pretrained(tmp_path)
    files = [json.loads((tmp_path / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json")]
    page.goto(encoder.url)
    page.evaluate(OPEN, files)
    rows: dict[str | None, list[tuple[str, ...]]] = {None: [(text,) for text in ODD], "other": list(product(ODD, ODD))}
    for (pair, texts), max_length, side in product(rows.items(), (7, 12, 400), ("right", "left")):
        tokenizer.truncation_side = side
        kind = kind_of(replace(TASK, text_pair=pair, max_length=max_length))
        columns = [list(column) for column in zip(*texts, strict=True)]
        expected = kind.encode(Rows(columns[0], columns[1] if pair else None, np.zeros(len(texts))), tokenizer)
        about = reading(kind, tokenizer) | {"max_length": max_length}
        read = json.loads(page.evaluate(TOKENS, [about, texts]))
        ids = [expected.ids.row(number).tolist() for number in range(len(texts))]
        differ = [texts[n] for n, row in enumerate(read) if [token for token, _ in row] != ids[n]]
        assert not [row for row in differ if family == "bert" or not ODD_CHARACTERS.search("".join(row))]
        if not differ and expected.types is not None:
            assert [kept for row in read for _, kept in row] == expected.types.tolist()
