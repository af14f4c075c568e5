"""Modelfiles: what Ollama's parser takes, and what it makes of it."""

from __future__ import annotations

from loraxs_search.methods.ollama import modelfile
from loraxs_search.records import Serving


def test_a_prompt_of_one_column_is_the_template():
    serving = Serving("Question: {question}\nAnswer:", stop=("\nQuestion:", "###"), max_new_tokens=64)
    lines = modelfile("org/base", serving)
    assert 'TEMPLATE """Question: {{ .Prompt }}\nAnswer:"""\n' in lines
    assert 'PARAMETER stop """\nQuestion:"""\n' in lines
    assert 'PARAMETER stop """###"""\n' in lines
    assert "PARAMETER num_predict 64\nPARAMETER temperature 0\nPARAMETER top_p 1\n" in lines
    assert "PARAMETER top_k 0\nPARAMETER repeat_penalty 1\n" in lines
    assert "org/base" in lines
    assert "FROM ./base.gguf\nADAPTER ./adapter.gguf\n" in lines


def test_braces_are_those_of_the_prompt():
    assert 'TEMPLATE """{x} {{ "{{" }}y}} {{ .Prompt }}:"""' in modelfile("b", Serving("{{x}} {{{{y}}}} {z}:"))


def test_a_prompt_that_cannot_be_one_is_left_to_the_user():
    for prompt in ("{first} and {second}", '{text}"', 'a """ {text}:'):
        lines = modelfile("b", Serving(prompt))
        assert f"# Give the whole prompt, which was in training: {prompt!r}\n" in lines
        assert 'TEMPLATE """{{ .Prompt }}"""\n' in lines
    assert "PARAMETER stop" not in modelfile("b", Serving("{x}:", stop=('so """ said',)))


def test_messages_go_through_the_bases_own_template():
    serving = Serving(None, (("user", "{question}"),), temperature=0.7, top_p=0.9, ends=("<|im_end|>",))
    lines = modelfile("b", serving)
    assert 'PARAMETER stop """<|im_end|>"""\n' in lines
    assert "TEMPLATE" not in lines
    assert "PARAMETER temperature 0.7\nPARAMETER top_p 0.9\n" in lines


def test_messages_before_the_users_are_written_down():
    few = (("system", "Say {{a}} word."), ("user", "1 + 1"), ("assistant", "2"), ("user", "{question}"))
    lines = modelfile("b", Serving(None, few))
    assert 'SYSTEM """Say {a} word."""\nMESSAGE user """1 + 1"""\nMESSAGE assistant """2"""\n' in lines
    assert "# Give" not in lines, "the column is all that a user types"


def test_what_ollama_cannot_fill_in_is_left_to_the_user():
    serving = Serving(None, (("system", "You know {topic}."), ("user", "Answer in a word: {question}")))
    lines = modelfile("b", serving)
    assert "# Give this message of the system before: 'You know {topic}.'\n" in lines
    assert "# Give the whole message of the user, which was in training: 'Answer in a word: {question}'\n" in lines
    assert "SYSTEM" not in lines


def test_an_adapter_that_is_not_asked_by_a_prompt_has_no_settings():
    assert "PARAMETER" not in modelfile("b", None)
