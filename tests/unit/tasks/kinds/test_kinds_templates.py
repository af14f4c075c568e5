"""Texts with columns in braces, and prompts made of them."""

from __future__ import annotations

import datetime

import pytest
from support.characters import CHAT, characters

from loraxs_search.records.task import Serving
from loraxs_search.tasks.asking import asking_code
from loraxs_search.tasks.kinds._language_model import Prompt, Template, begin_ids, continued_ids, token_ids, written

CHAT_PROMPT = {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "{q} {n}"}]}


def said(keys, row, tokenizer):
    prompt = Prompt.of(keys)
    return "".join(tokenizer.convert_ids_to_tokens(prompt.ids([prompt.fill(row)], tokenizer)[0]))


def test_columns_are_filled_in_and_double_braces_are_single_ones():
    template = Template.of("{{x}} {a b}: {c}, {a b}}}")
    assert template.columns == ("a b", "c")
    assert template.fill({"a b": "one {c}", "c": 2, "d": None}) == "{x} one {c}: 2, one {c}}"
    for text, law in [("a } b", "close"), ("{a{b}}", "close"), ("{a", "close"), ("{ }", "name a column")]:
        with pytest.raises(ValueError, match=law):
            Template.of(text)


def test_values_are_written_as_json_would_and_numbers_plainly():
    for value, text in [
        ("ä\n", "ä\n"),
        (-7.0, "-7"),
        (1e22, "1e+22"),
        (True, "true"),
        ({"é": [1.5, None]}, '{"é": [1.5, null]}'),
    ]:
        assert written(value) == text
    for value in [None, float("nan"), [float("inf")], datetime.date(2020, 1, 1), ["\ud800"]]:
        with pytest.raises(ValueError):  # the caller names the value
            written(value)


# ---- prompts ---------------------------------------------------------------------------------------------------------
def test_prompts_begin_with_the_begin_token_and_messages_go_through_the_chat_template():
    row = {"q": "ab", "n": 3}
    assert said({"prompt": "{q}?"}, row, characters(begins=True)) == "<s>ab?"
    assert said({"prompt": "{q}?"}, row, characters()) == "ab?"
    assert (begin_ids(characters(begins=True)), begin_ids(characters())) == ([2], [])
    assert Prompt.of(CHAT_PROMPT).columns == ("q", "n")
    whole = "<|system|>be<|end|><|user|>ab▁3<|end|><|assistant|>"
    assert said(CHAT_PROMPT, row, characters(begins=True, chat=CHAT)) == whole
    # A template with a date gives the same tokens every day.
    assert said(CHAT_PROMPT, row, characters(chat="{{ strftime_now('%d %b %Y') }}" + CHAT)) == f"26▁Jul▁2024{whole}"
    asked = "{% if strftime_now is defined %}{% set d = strftime_now('%Y-%m-%d') %}{{ d[:4] }}{% endif %}"
    assert said(CHAT_PROMPT, row, characters(chat=asked)) == "2024"


def test_the_code_of_an_export_writes_the_date_of_training():
    dated = "{{ strftime_now('%d %b %Y') }}{{ strftime_now(\"%-m\") }}" + CHAT
    tokenizer, messages = characters(chat=dated), [{"role": "user", "content": "a"}]
    code = asking_code(Serving(prompt=None, messages=(("user", "a"),), max_new_tokens=3))
    exec(code.partition("model.generation_config")[0], space := {"tokenizer": tokenizer})
    assert space["inputs"]["input_ids"][0].tolist() == Prompt.of({"messages": messages}).ids([["a"]], tokenizer)[0]


def test_an_answer_continues_its_prompt_without_a_space_of_its_own():
    """Some tokenizers put a space before each text: behind a prompt it would be one too many."""
    for prepend in ["never", "first", "always"]:
        tokenizer = characters(prepend=prepend)
        for text in (" a b", "ab", "\nab", "  ab"):
            whole, before = token_ids([f"x{text}", "x"], tokenizer)
            assert continued_ids([text], tokenizer) == [whole[len(before) :]]
