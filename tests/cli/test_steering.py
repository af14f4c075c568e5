"""The verbs that steer a search, for a study that nobody runs: queued and said, refused with the reason, shown."""

from __future__ import annotations

import json

import pytest
from support.searched_studies import Tried, searched

from loraxs_search.records.trial import TrialState

SPACE = """
task: sst2
base_model: org/base
parameters:
  rank: {choice: [4, 8, 16]}
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
"""
PARAMS = {"rank": 4, "learning_rate": 0.01}


@pytest.fixture
def folder(fresh_home):
    """A study that was interrupted, with a trial that has ended and one that has not."""
    tried = [Tried(PARAMS, 0.9, state=TrialState.PRUNED), Tried(PARAMS, 0.9, state=TrialState.RUNNING)]
    return searched("s", tried, space=SPACE, finished=False)


QUEUED: list[tuple[list[str], dict[str, object]]] = [
    (["stop", "s", "1", "--now"], {}),
    (["add", "s", "--set", "rank=16", "--set", "learning_rate=1e-3"], {"rank": 16, "learning_rate": 0.001}),
    (["add", "s", "--from", "0", "--set", "learning_rate=2e-3"], {"learning_rate": 0.002}),
    (["extend", "s", "--trials", "12", "--time", "1h"], {}),
]
REFUSED = [
    (["stop", "s", "7"], 1, ("`trial` must be one of study 's': 00001, 00000, but got '00007'", "status s")),
    (["add", "s", "--set", "rank=5"], 1, ("`rank` must be as the space has it, one of 4, 8, 16, but got 5",)),
    (["extend", "s", "--trials", "x"], 2, ("`--trials` must be a whole number, but got 'x'.",)),
    (["finish", "nothing"], 1, ("but there is no 'nothing'", "ssh MACHINE")),
]


def test_a_command_is_queued_and_status_names_it(say, folder):
    for number, (line, params) in enumerate(QUEUED):
        said = say(*line)
        assert (said.ok, "s: queued: nobody runs study 's' on this machine" in said.err) == ("", True)
        assert "`loraxs-search resume s` carries it out first" in said.err
        commands = list(folder.inbox.waiting())
        assert (len(commands), commands[-1].verb, dict(commands[-1].params)) == (number + 1, line[0], params)
        assert f"not answered yet: {line[0]} " in say("status", "s").err
    verbs = [line[0] for line, _ in QUEUED]
    assert [it["verb"] for it in json.loads(say("status", "s", "--json").ok)["commands"]] == verbs


def test_what_is_refused_says_why_and_what_to_do(say, folder):
    for line, code, parts in REFUSED:
        assert say(*line).is_error(code, *parts)
    assert not list(folder.inbox.waiting())
    assert json.loads(say("stop", "s", "1", "--json").ok)["state"] == "queued"


def test_a_damaged_study_is_said_to_be(say, folder):
    (folder.path / "space.yaml").write_text("task: [")
    assert say("add", "s", "--set", "rank=4").is_error(1, "must be valid YAML")
    (folder.path / "journal.jsonl").write_text("{\n")
    assert say("extend", "s", "--trials", "1").is_error(1, "Every line of a journal must be an event")
