"""Well-known tasks: listed, and shown as a space would have them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import yaml
from support.spaces import catalogue_task

from loraxs_search.paths import shipped_tasks
from loraxs_search.search_space.load import parse_space

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
