"""Well-known tasks: listed, shown as a space would have them, and rows as the model sees them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.characters import characters

from loraxs_search.search_space import catalogue_task, parse_space
from loraxs_search.shipped_spaces import shipped_tasks

REST = "base_model: some/base\nparameters: {rank: 4, learning_rate: 0.001}\n"


# ---- ls, show --------------------------------------------------------------------------------------------------------
def test_the_tasks_are_listed(say):
    heading, *lines = say("tasks", "ls").ok.splitlines()
    assert heading.split() == ["task", "kind", "metric", "data", "about"]
    assert [line.split()[0] for line in lines] == shipped_tasks()
    assert re.search(r"^arc_easy +multiple-choice +accuracy +allenai/ai2_arc/ARC-Easy +Grade", "\n".join(lines), re.M)
    listed = json.loads(say("tasks", "ls", "--json").ok)
    assert [entry["name"] for entry in listed] == shipped_tasks()
    assert {"name", "kind", "metrics", "data", "about", "notes"} == set(listed[0])


@pytest.mark.parametrize("name", shipped_tasks())
def test_a_shown_task_is_one_for_a_space_file(say, name, tmp_path):
    shown = say("tasks", "show", name).ok
    task = parse_space(shown + REST, source="shown.yaml", folder=tmp_path).task
    assert replace(task, report_metric=None, report_direction=None) == catalogue_task(name)
    assert "# Loaded: never: written from the data set's card\n" in shown
    assert "# Data: https://huggingface.co/datasets/" in shown
    assert json.loads(say("tasks", "show", name, "--json").ok)["task"] == yaml.safe_load(shown)["task"]


def test_an_unknown_task_names_the_nearest(say):
    assert say("tasks", "show", "gsm-8k").is_error(2, "must be one of: gsm8k,")


# ---- preview ---------------------------------------------------------------------------------------------------------
def test_rows_of_a_space_are_shown_with_special_tokens_and_counts(say, tiny_space):
    printed = say("tasks", "preview", str(tiny_space), "--rows", "2", "--split", "validation").ok
    first, text, answer, *_ = printed.splitlines()
    assert re.fullmatch(r"--- validation row 1: \d+ tokens", first)
    assert re.fullmatch(r"\[CLS\] .* \[SEP\]", text)
    assert answer in ("--- answer: negative", "--- answer: positive")
    assert printed.count("--- validation row") == 2
    assert re.search(r"^validation: 2,000 rows\ntokens of the first 1,000 rows: mean \d+\.\d, most 32$", printed, re.M)
    described = json.loads(say("tasks", "preview", str(tiny_space), "--rows", "1", "--json").ok)
    assert (described["split"], described["num_rows"], len(described["rows"])) == ("train", 900, 1)
    assert described["rows"][0]["parts"][0]["learnt"] is False


def test_a_well_known_task_needs_a_base(say):
    assert say("tasks", "preview", "gsm8k").is_error(2, "`--base` must be given: gsm8k is a well-known task")


def test_a_split_that_is_none_is_refused(say, tiny_space):
    assert say("tasks", "preview", str(tiny_space), "--split", "dev").is_error(2, "`--split` must be one of: ")


@pytest.fixture
def writing(tmp_path: Path) -> Path:
    """A space whose model writes, on a tiny base with a tokenizer of single characters."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = characters()
    tokenizer.save_pretrained(tmp_path / "base")
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(tmp_path / "base")
    rows = [{"q": "x" * (i % 40 + 1), "n": i % 7} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "writing.yaml").write_text(WRITING)
    return tmp_path / "writing.yaml"


WRITING = """
task:
  name: lengths
  kind: text-generation
  data: {data_files: {train: rows.jsonl}, carved_rows: 10}
  prompt: "{q}:"
  answer: " {n}"
  metrics: [exact_match]
  max_length: 20
  generation: {max_new_tokens: 4}
base_model: ./base
parameters: {rank: 2, learning_rate: 0.01}
"""
CHOICE = (
    ("kind: text-generation", "kind: multiple-choice"),
    ('answer: " {n}"', "options: [a, b, c, d, e, f, g]\n  label: n"),
)


def test_learnt_tokens_and_rows_that_are_cut_are_marked(say, writing):
    printed = say("tasks", "preview", str(writing), "--rows", "30").ok
    assert re.search(r"^--- train row \d+: (\d+) tokens, 3 learnt\nx+:\[\[ \d</s>\]\]\n--- answer: \d\n", printed, re.M)
    assert re.search(r"^--- train row \d+: 20 tokens, 3 learnt, cut\nx{16}:\[\[ \d</s>\]\]$", printed, re.M), printed
    assert re.search(
        r"^train: 40 rows\ntokens of the first 40 rows: mean \S+, 3.0 of them learnt, most 20$", printed, re.M
    )
    assert re.search(r"^cut to max_length: \d+ of these$", printed, re.M)


def test_on_a_terminal_learnt_tokens_are_coloured(say, writing, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    printed = say("tasks", "preview", str(writing), "--rows", "1").ok
    assert re.search(r"x+:\x1b\[32m\x1b\[1m \d</s>\x1b\[0m\n", printed)


def test_the_right_option_is_what_a_choice_learns(say, writing):
    text = WRITING.replace("exact_match", "accuracy").replace("  generation: {max_new_tokens: 4}\n", "")
    for one, other in CHOICE:
        text = text.replace(one, other)
    writing.write_text(text)
    printed = say("tasks", "preview", str(writing)).ok
    row, text, answer = printed.splitlines()[:3]
    assert re.fullmatch(r"--- train row 1: \d+ tokens, \d learnt", row)
    right = re.fullmatch(r"x+:\[\[ ?([a-g])\]\]", text)
    assert right is not None
    assert answer == f"--- answer: {right[1]}"


def test_the_base_of_another_space_lends_its_tokenizer(say, writing, tiny_space):
    assert "[[" in say("tasks", "preview", str(writing), "--base", str(writing.with_name("base"))).ok
    assert say("tasks", "preview", str(tiny_space), "--base", str(writing), "--rows", "1").ok.startswith(
        "--- train row 1"
    )
