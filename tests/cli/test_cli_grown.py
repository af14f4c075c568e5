"""add, clone and extend as people type them, on studies that nobody runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.searched_studies import Tried, searched

from loraxs_search.studies.folder import StudyFolder

SPACE = """
task: sst2
base_model: org/base
parameters:
  rank: {choice: [4, 8, 16]}
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
"""


@pytest.fixture
def ended(fresh_home: Path) -> StudyFolder:
    return searched("reviews", [Tried({"rank": 4, "learning_rate": 0.01}, 0.9)], space=SPACE)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (["add", "reviews", "--set", "rank=16", "--set", "learning_rate=1e-3"], {"rank": 16, "learning_rate": 0.001}),
        (["add", "reviews", "--from", "0", "--set", "learning_rate=2e-3"], {"learning_rate": 0.002}),
        (["extend", "reviews", "--trials", "12", "--time", "1h"], {}),
    ],
)
def test_a_study_that_nobody_runs_has_it_wait_and_says_how_to_go_on(
    say: Any, ended: StudyFolder, line: list[str], what: dict[str, Any]
) -> None:
    said = say(*line)
    assert (said.code, said.out) == (0, "")
    assert "queued: nobody runs study 'reviews'" in said.err
    assert "`loraxs-search resume reviews` carries it out first" in said.err
    (command,) = ended.inbox().waiting()
    assert (command.verb, dict(command.params)) == (line[0], what)
    answer = json.loads(say(*line, "--json").out)
    assert answer["state"] == "queued"


@pytest.mark.parametrize(
    ("line", "law"),
    [
        (["add", "reviews", "--set", "rank=5"], "`rank` must be as the space has it, one of 4, 8, 16, but got 5"),
        (["add", "reviews", "--set", "rank"], "`--set` must be NAME=VALUE"),
        (["add", "revews"], "`study` must be one of this machine"),
        (["add", "reviews", "--from", "7"], "`trial` must be one of study 'reviews': 00000, but got '00007'"),
        (["add", "reviews", "--from", "0", "--set", "learning_rate=1"], "`learning_rate` must be as the space has it"),
        (["extend", "reviews"], "`extend` needs --trials, --time or both"),
        (["extend", "reviews", "--time", "1h"], "it has had all of its 1"),
        (["extend", "reviews", "--trials", "0"], "`--trials` must be a whole number of at least 1"),
        (["extend", "reviews", "--trials", "x"], "`--trials` must be a whole number, but got 'x'."),
    ],
)
def test_what_cannot_be_is_refused_at_once_with_the_law(
    say: Any, ended: StudyFolder, line: list[str], law: str
) -> None:
    said = say(*line)
    assert said.code in (1, 2)
    assert law in said.err
    assert not list(ended.inbox().waiting())


def test_a_damaged_study_is_said_to_be(say: Any, ended: StudyFolder) -> None:
    (ended.path / "space.yaml").write_text("task: [")
    said = say("add", "reviews", "--set", "rank=4")
    assert said.code == 1
    assert "must be valid YAML" in said.err
    (ended.path / "journal.jsonl").write_text("{\n")
    said = say("extend", "reviews", "--trials", "1")
    assert said.code == 1
    assert "Every line of a journal must be an event" in said.err
