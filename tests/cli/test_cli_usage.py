"""Help, version, and requests that are not understood."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import yaml
from support.spaces import catalogue_task
from support.studies import study

import loraxs_search
from loraxs_search.home import shipped_spaces, shipped_tasks
from loraxs_search.search_space.load import parse_space

REST = "base_model: some/base\nparameters: {rank: 4, learning_rate: 0.001}\n"


def test_help_lists_every_verb_whole(say):
    said = say("--help")
    assert (said.code, said.err) == (0, "")
    for verb in ("launch", "status", "stop", "promote", "gc", "spaces", "studies", "tasks"):
        assert f"  {verb} " in said.out
        assert say(verb, "--help").ok.startswith(f"Usage: loraxs-search {verb}")
    assert "..." not in said.out.partition("Commands:")[2], "each verb's first line fits"
    assert "130 interrupted" in said.out


def test_nothing_asked_is_answered_with_help(say):
    assert say("--version").out == f"{loraxs_search.__version__}\n"
    said = say()
    assert (said.code, said.out) == (2, "")
    assert "Commands:" in said.err
    assert "error:" not in said.err


MISUNDERSTOOD = [
    (["lauch"], ("Did you mean launch? `command` must be one of: launch, ", "`loraxs-search --help`")),
    (["ui", "--port", "many"], ("`--port` must be a whole number, but got 'many'.",)),
    (["pull", "t", "--format", "gguff"], ("Did you mean gguf? `--format` must be one of: gguf, ", "got 'gguff'")),
]


def test_a_request_that_is_not_understood(say):
    for line, parts in MISUNDERSTOOD:
        assert say(*line).is_error(2, *parts)


def test_traceback_is_shown_wherever_it_is_asked_for_and_is_a_text_after_two_dashes(say):
    for line in (["--traceback", "status", "x"], ["status", "--traceback", "x"], ["status", "x", "--traceback"]):
        said = say(*line)
        assert said.code == 1
        assert "Traceback (most recent call last)" in said.err
        assert "error: There is no study yet, but got 'x'." in said.err
    assert say("status", "--", "--traceback").is_error(1, "but got '--traceback'")


def test_a_fault_of_ours_is_one_sentence_and_ctrl_c_is_130(say, monkeypatch):
    raised = iter((ZeroDivisionError("by nought"), KeyboardInterrupt()))

    def broken(*args):
        raise next(raised)

    monkeypatch.setattr("loraxs_search.cli.studies.study_summaries", broken)
    assert say("status").is_error(1, "error: ZeroDivisionError: by nought", "--traceback")
    said = say("status")
    assert (said.code, said.err) == (130, "error: interrupted\n")


def test_what_a_terminal_cannot_show_is_escaped(tmp_path):
    command = [sys.executable, "-m", "loraxs_search", "spaces", "copy", "movie_reviews", "\u4f60\xe9.yaml"]
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=True)
    assert done.stdout == b"\\u4f60\xe9.yaml\n"


def test_a_name_that_is_nearly_right_is_asked_about_first(say):
    study("reviews"), study("review-2"), study("others")
    assert say("status", "othrs").is_error(1, "error: Did you mean others? `study` must be one of: others, ")
    assert "Did you mean" not in say("status", "reviewz").err, "two are as near"


def test_no_studies_yet_is_said(say):
    said = say("status")
    assert (said.code, said.out) == (0, "study  task  state  trials  created\n")
    assert "loraxs-search launch movie_reviews" in said.err
    assert say("status", "--json").out == "[]\n"


# ---- spaces ----------------------------------------------------------------------------------------------------------
def test_spaces_are_listed_shown_and_copied(say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [line.split()[0] for line in say("spaces", "ls").out.splitlines()[1:]] == shipped_spaces()
    spaces = loraxs_search.spaces().items()
    assert json.loads(say("spaces", "ls", "--json").ok) == [{"space": name, "about": about} for name, about in spaces]
    assert "train: data/movie_reviews/train.jsonl.gz" in say("spaces", "show", "movie_reviews").out
    assert say("spaces", "copy", "movie-reviews", "mine.yaml").out == "mine.yaml\n"
    copied = (tmp_path / "mine.yaml").read_text()
    assert say("check", "mine.yaml").code == 0
    assert say("spaces", "copy", "movie_reviews", "mine.yaml").is_error(2, "mine.yaml does")
    assert (tmp_path / "mine.yaml").read_text() == copied


# ---- tasks -----------------------------------------------------------------------------------------------------------
def test_the_tasks_are_listed(say):
    heading, *lines = say("tasks", "ls").ok.splitlines()
    assert heading.split() == ["task", "kind", "metric", "data", "about"]
    assert [line.split()[0] for line in lines] == shipped_tasks()
    assert re.search(r"^arc_easy +multiple-choice +accuracy +allenai/ai2_arc/ARC-Easy +Grade", "\n".join(lines), re.M)
    listed = json.loads(say("tasks", "ls", "--json").ok)
    assert [entry["name"] for entry in listed] == shipped_tasks()
    assert {"name", "kind", "metrics", "data", "about", "notes"} == set(listed[0])


def test_a_shown_task_is_one_for_a_space_file(say, tmp_path):
    for name in ("sst2", "gsm8k", "arc_easy"):
        shown = say("tasks", "show", name).ok
        task = parse_space(shown + REST, source="shown.yaml", folder=tmp_path).task
        assert replace(task, report_metric=None, report_direction=None) == catalogue_task(name)
        assert json.loads(say("tasks", "show", name, "--json").ok)["task"] == yaml.safe_load(shown)["task"]


# ---- check -----------------------------------------------------------------------------------------------------------
def test_check_describes_a_space(say, tiny_space):
    said = say("check", str(tiny_space), "--data")
    assert said.code == 0
    both = "learning_rate and head_learning_rate are continuous"
    assert f"rank, target_modules, learning_rate, head_learning_rate: any number of combinations, as {both}" in said.out
    assert "\ndata                   train  validation      test\nrows " in said.out
    assert "\nat the end  2 refits of 8 steps; up to 4 candidates answer all " in said.out
    assert "attention: 8 modules\n  bert.encoder.layer.{0-1}.attention.self.query\n" in said.out
    lines = [line.split() for line in said.out.splitlines()]
    assert next(line[:5] for line in lines if line[:1] == ["smallest"]) == ["smallest", "2", "attention", "32", "66"]
    assert next(line[:5] for line in lines if line[:1] == ["largest"]) == ["largest", "4", "all-linear", "192", "66"]


def test_check_says_how_many_trials_would_train_at_once_and_why(say, tiny_space):
    assert "pack size   auto: as many trials at once as fill the device" in say("check", str(tiny_space)).out
    told = say("check", str(tiny_space), "--data", "--set", "search.trials=3").out
    assert "pack size   auto: 3 at once on this machine (" in told
    assert "the 3 trials make one round)" in told
    asked = say("check", str(tiny_space), "--data", "--set", "search.pack_size=2").out
    assert "pack size   2\n" in asked
