"""Whatever a client sends, a server answers with a status of the client's own fault, and goes on."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from loraxs_search.serve.bodies import ErrorBody

hypothesis.settings.register_profile("http", max_examples=30, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def decoder_api(decoder):
    return schemathesis.openapi.from_url(f"{decoder.url}/openapi.json")


@schemathesis.pytest.from_fixture("decoder_api").parametrize()
@hypothesis.settings(hypothesis.settings.get_profile("http"))
def test_what_the_description_allows_and_forbids_has_no_fault_of_the_server(case):
    case.call_and_validate(checks=[not_a_server_error, response_schema_conformance])


def test_errors_are_sent_as_they_are_described(encoder):
    operations = [own for path in encoder.get("/openapi.json").json()["paths"].values() for own in path.values()]
    assert operations
    for operation in operations:
        described = {status: own["content"] for status, own in operation["responses"].items() if status[0] in "45"}
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
        assert described == {"4XX": error, "5XX": error}
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
@hypothesis.settings(hypothesis.settings.get_profile("http"), max_examples=200)
def test_any_rows_for_a_model_that_is_there(encoder, model, rows, truncate):
    response = encoder.post("/classify", {"model": model, "input": rows, "truncate": truncate})
    assert response.status_code < 500, response.text
    assert response.json()


def test_options_that_are_a_text_of_many_brackets(decoder):
    """JSON's reader gives up on them with an error of its own."""
    response = decoder.post("/classify", {"model": "listed", "input": {"words": "w1", "choices": "[" * 100_000}})
    assert response.status_code == 400


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
@hypothesis.settings(hypothesis.settings.get_profile("http"), max_examples=200)
def test_any_prompt_for_a_model_that_is_there(decoder, model, prompt, options):
    response = decoder.post("/v1/completions", {"model": model, "prompt": prompt, **options})
    assert response.status_code < 500, response.text
    assert '"server_error"' not in response.text
