"""The page of a server in a real browser."""

from __future__ import annotations

import pytest
from support.browsers import CHROMIUM, chromium

from loraxs_search.serve.app import Server
from loraxs_search.serve.served_models import ServedModels

from .conftest import running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's package chromium"),
]
TEXT = "<b>a fine film</b>"


def test_a_key_is_asked_for_and_tasks_can_be_tried(registry, encoder, decoder):
    expected = encoder.classify("task-2", TEXT)
    words = decoder.classify("two", {"first": "w1", "second": "w2"})["data"][0]["label"]
    locked = Server(ServedModels(["task-2", "task-1"], uri=registry[0]), keys=["sesame"])
    with running(locked) as url, chromium() as browser:
        page = browser.new_page()
        page.goto(url)
        page.fill("#key", "sesame")
        page.press("#key", "Tab")
        page.wait_for_selector("#model option", state="attached")
        page.select_option("#model", "task-2")
        page.fill("textarea", TEXT)
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
        page.fill("textarea", TEXT)
        page.click("button")
        number = encoder.classify("task-1", TEXT)["data"][0]["score"]
        page.wait_for_selector("output p:not([role])")
        assert float(page.inner_text("output")) == pytest.approx(number, abs=1e-5)
        page.goto(decoder.url)
        page.select_option("#model", "two")
        page.fill("#column-first", "w1")
        page.fill("#column-second", "w2")
        page.click("button")
        page.wait_for_selector("output p")
        assert page.inner_text("output").strip() == (words or "(no text)")
