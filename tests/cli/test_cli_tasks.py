"""Well-known tasks: listed, shown as a space would have them, and rows as the model sees them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import yaml

from loraxs_search.search_space import parse_space
from loraxs_search.tasks import catalogue_names, catalogue_task

REST = "base_model: some/base\nparameters: {rank: 4, learning_rate: 0.001}\n"


# ---- ls, show --------------------------------------------------------------------------------------------------------
def test_the_tasks_are_listed_with_what_was_never_loaded(say):
    heading, *lines = say("tasks", "ls").ok.splitlines()
    assert heading.split() == ["task", "kind", "metric", "data", "loaded", "about"]
    assert [line.split()[0] for line in lines] == catalogue_names()
    assert re.search(
        r"^arc_easy +multiple-choice +accuracy +allenai/ai2_arc/ARC-Easy +never +Grade", "\n".join(lines), re.M
    )
    listed = json.loads(say("tasks", "ls", "--json").ok)
    assert [entry["name"] for entry in listed] == catalogue_names()
    assert {"name", "about", "kind", "metrics", "rows", "cards", "loaded", "notes"} == set(listed[0])


@pytest.mark.parametrize("name", catalogue_names())
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
    assert re.search(r"^validation: 1,000 rows\ntokens of the first 1,000 rows: mean \d+\.\d, most 32$", printed, re.M)
    described = json.loads(say("tasks", "preview", str(tiny_space), "--rows", "1", "--json").ok)
    assert (described["split"], described["num_rows"], len(described["rows"])) == ("train", 900, 1)
    assert described["rows"][0]["parts"][0]["learnt"] is False


def test_a_well_known_task_needs_a_base(say):
    assert say("tasks", "preview", "gsm8k").is_error(2, "`--base` must be given: gsm8k is a well-known task")


def test_a_split_that_is_none_is_refused(say, tiny_space):
    assert say("tasks", "preview", str(tiny_space), "--split", "dev").is_error(2, "`--split` must be one of: ")
