"""Texts with columns in braces, and prompts made of them."""

from __future__ import annotations

import datetime

import pytest
from support.characters import CHAT, characters

from loraxs_search.records.task import Serving
from loraxs_search.tasks.asking import asking_code
from loraxs_search.tasks.kinds._language_model import Prompt, Template, begin_ids, continued_ids, token_ids, written


def said(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens(ids))


# ---- templates -------------------------------------------------------------------------------------------------------
def test_columns_are_filled_in_and_double_braces_are_single_ones():
    template = Template.of("{{x}} {a b}: {c}, {a b}}}")
    assert template.columns == ("a b", "c")
    assert template.fill({"a b": "one {c}", "c": 2, "d": None}) == "{x} one {c}: 2, one {c}}"
    assert Template.of("no column").fill({}) == "no column"


def test_a_brace_without_partner_is_refused():
    for text in ["a } b", "{a{b}}", "{a"]:
        with pytest.raises(ValueError, match="must close each brace"):
            Template.of(text)


def test_braces_without_a_column_are_refused():
    for text in ["{}", "{ }"]:
        with pytest.raises(ValueError, match="must name a column"):
            Template.of(text)


def test_values_are_written_as_json_would_and_numbers_plainly():
    for value, text in [
        ("ä\n", "ä\n"),
        (7, "7"),
        (-7.0, "-7"),
        (1e22, "1e+22"),
        (True, "true"),
        (["a", 1, None], '["a", 1, null]'),
        ({"é": [1.5]}, '{"é": [1.5]}'),
    ]:
        assert written(value) == text


def test_what_cannot_be_written_is_refused():
    for value in [None, float("nan"), [float("inf")], datetime.date(2020, 1, 1), ["\ud800"]]:
        with pytest.raises(ValueError):  # the caller names the value
            written(value)


# ---- prompts ---------------------------------------------------------------------------------------------------------
def test_a_text_begins_with_the_begin_token_and_has_no_end_token():
    tokenizer = characters(begins=True)
    prompt = Prompt.of({"prompt": "{q}?"})
    assert begin_ids(tokenizer) == [2]
    assert said(tokenizer, prompt.ids([prompt.fill({"q": "ab"})], tokenizer)[0]) == "<s>ab?"
    assert begin_ids(characters()) == []
    assert said(tokenizer, prompt.ids([["ab"]], characters())[0]) == "ab"


def test_messages_go_through_the_chat_template_up_to_the_answer():
    tokenizer = characters(begins=True, chat=CHAT)
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "{q} {n}"}]
    prompt = Prompt.of({"messages": messages})
    assert prompt.columns == ("q", "n")
    filled = prompt.fill({"q": "ab", "n": 3})
    assert filled == ["be", "ab 3"]
    ids = prompt.ids([filled], tokenizer)[0]
    assert said(tokenizer, ids) == "<|system|>be<|end|><|user|>ab▁3<|end|><|assistant|>"


def test_a_template_with_a_date_gives_the_same_tokens_every_day():
    dated = "{{ strftime_now('%d %b %Y') }}" + CHAT
    tokenizer, messages = characters(chat=dated), [{"role": "user", "content": "{q}"}]
    ids = Prompt.of({"messages": messages}).ids([["ab"]], tokenizer)[0]
    assert said(tokenizer, ids) == "26▁Jul▁2024<|user|>ab<|end|><|assistant|>"
    asked = "{% if strftime_now is defined %}{% set d = strftime_now('%Y-%m-%d') %}{{ d[:4] }}{% endif %}"
    assert said(tokenizer, Prompt.of({"messages": messages}).ids([["ab"]], characters(chat=asked))[0]) == "2024"


def test_the_code_of_an_export_writes_the_date_of_training():
    dated = (
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{{ strftime_now(\"%-m\") }}{% endif %}" + CHAT
    )
    tokenizer, messages = characters(chat=dated), [{"role": "user", "content": "a"}]
    code = asking_code(Serving(prompt=None, messages=(("user", "a"),), max_new_tokens=3))
    exec(code.partition("model.generation_config")[0], space := {"tokenizer": tokenizer})
    assert space["inputs"]["input_ids"][0].tolist() == Prompt.of({"messages": messages}).ids([["a"]], tokenizer)[0]


def test_an_answer_ends_with_the_turn_of_a_chat_and_else_with_the_end_token():
    tokenizer = characters(chat=CHAT)
    assert Prompt.of({"prompt": "{q}"}).end_id(tokenizer) == tokenizer.eos_token_id
    chat = Prompt.of({"messages": [{"role": "user", "content": "{q}"}]})
    assert said(tokenizer, [chat.end_id(tokenizer)]) == "<|end|>"
    assert chat.end_id(characters(chat="{{ messages[-1].content }}")) == tokenizer.eos_token_id


def test_an_answer_continues_its_prompt_without_a_space_of_its_own():
    """Some tokenizers put a space before each text: behind a prompt it would be one too many."""
    for prepend in ["never", "first", "always"]:
        tokenizer = characters(prepend=prepend)
        for text in (" a b", "ab", "\nab", "  ab"):
            whole, before = token_ids([f"x{text}", "x"], tokenizer)
            assert continued_ids([text], tokenizer) == [whole[len(before) :]]
        assert continued_ids([], tokenizer) == []
