"""Help, version, completion, requests that cannot be met, and what is printed where."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import typer.main
import yaml
from support.shell import Said
from support.spaces import catalogue_task
from support.studies import TASK, Tried, searched, study

import loraxs_search
from loraxs_search.cli._main import app, run
from loraxs_search.cli._out import PlainText, plain, print_json
from loraxs_search.home import shipped_spaces, shipped_tasks
from loraxs_search.log.events import TrialStarted
from loraxs_search.records.search import Candidate, Command
from loraxs_search.search_space.load import parse_space
from loraxs_search.studies.folder import list_studies

REST = "base_model: some/base\nparameters: {rank: 4, learning_rate: 0.001}\n"


# ---- help and completion ---------------------------------------------------------------------------------------------
def test_help_lists_every_verb_whole(say):
    said = say("--help")
    assert (said.code, said.err) == (0, "")
    for verb in ("launch", "status", "stop", "promote", "gc", "spaces", "studies", "tasks"):
        assert f"  {verb} " in said.out
        assert say(verb, "--help").ok.startswith(f"Usage: loraxs-search {verb}")
    assert "..." not in said.out.partition("Commands:")[2], "each verb's first line fits"
    assert "130 interrupted" in said.out
    assert "--install-completion" in said.out
    for line in (("-h",), ("launch", "-h"), ("spaces", "-h"), ("spaces", "show", "-h")):
        assert say(*line).ok.startswith("Usage: loraxs-search")
    assert say("--version").out == f"{loraxs_search.__version__}\n"
    said = say()
    assert (said.code, said.out) == (2, "")
    assert "Commands:" in said.err
    assert "error:" not in said.err


def test_verbs_and_options_are_offered_and_behind_a_wrong_line_nothing(monkeypatch, capsys):
    def offered(line: str) -> list[str]:
        words = {"COMP_WORDS": f"loraxs-search {line}", "COMP_CWORD": str(len(line.split(" ")))}
        for name, value in {"_LORAXS_SEARCH_COMPLETE": "complete_bash", **words}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            run([])
        said = capsys.readouterr()
        assert (ended.value.code, said.err) == (0, "")
        return said.out.split()

    assert offered("la") == ["launch"]
    assert "--set" in offered("launch --se")
    assert [offered(line) for line in ("lauch mo", "show --nothing ", "status nope mo")] == [[], [], []]


# ---- requests that cannot be met -------------------------------------------------------------------------------------
AWAY = "http://127.0.0.1:9"
REFUSED = [
    (["lauch"], 2, ("Did you mean launch? `command` must be one of: launch, ", "`loraxs-search --help`")),
    (["ui", "--port", "many"], 2, ("`--port` must be a whole number, but got 'many'.",)),
    (["pull", "t", "--format", "gguff"], 2, ("Did you mean gguf? `--format` must be one of: gguf, ", "got 'gguff'")),
    (["pull", "movie-reviews", "--tracking-uri", AWAY], 1, ("--tracking-uri",)),
    (["pull", "movie-reviews"], 1, ("There is no task yet, but got 'movie-reviews'",)),
    (["launch", "movie_reviews", "--name", "../up"], 1, ("but got '../up'", "--name")),
    (["launch", "movie_reviews", "--address", "127.0.0.1:1"], 1, ("luster at 127.0.0.1:1 must", "Connection refused")),
    (["serve"], 2, ("tasks or --all, but got neither",)),
    (["serve", "reviews", "--host", "not an address"], 2, ("must be free to listen at",)),
    (["serve", "reviews", "--api-key-file", "empty.txt"], 2, ("must have a key at least",)),
    (["serve", "reviews", "--question", "a=reviews", "--question", "a=other"], 2, ("each NAME once",)),
    (["serve", "reviews", "--max-bytes", "much", "--port", "0"], 2, ("must be a size such as 1GiB",)),
    (["serve", "reviews", "--keep", "sure", "kept"], 2, ("must be `unsure DIR`, but got sure kept",)),
    (["serve", "reviews", "--replicas", "2"], 2, ("must go with --address",)),
    (["serve", "reviews", "--address", "auto", "--replicas", "2:1"], 2, ("1 <= MIN <= MAX, but got '2:1'",)),
    (["serve", "reviews", "--address", "auto", "--device", "cuda:1"], 2, ("Ray chooses the GPU",)),
    (["serve", "reviews", "--device", "xyz", "--port", "0"], 2, ("`device` must be one that torch finds here",)),
    (["serve", "--down"], 2, ("must go with --address",)),
    (["serve", "--all", "--port", "0"], 2, ("the registry has none",)),
]


def test_what_is_refused_says_why_and_leaves_nothing_behind(say, store_uri, tmp_path, monkeypatch):
    (tmp_path / "cwd" / "empty.txt").write_text("\n")
    for line, code, parts in REFUSED:
        said = say(*line)
        assert (said.code, said.out, "Traceback" in said.err) == (code, "", False), line
        assert all(part in " ".join(said.err.split()) for part in parts), said.err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert say("ui", "--port", port).is_error(1, "must be free", "--port")
        assert say("serve", "reviews", "--port", port).is_error(2, "choose another --port")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert say("serve", "reviews").is_error(2, "pip install '.[serve]'")
    assert list_studies() == []


def test_a_space_that_does_not_fit_its_base_or_its_rows(say, tiny_space):
    check, column = ("check", str(tiny_space), "--data"), ("--set", "task.columns.text=sentense")
    rank = "`rank` must be in 1..32, but got rank=500 for bert.encoder.layer.0."
    assert say(*check, "--set", "parameters.rank=500").is_error(2, rank)
    said = say(*check, "--set", "base_model=org/nowhere", *column)
    assert said.is_error(1, "'org/nowhere' was not found", "`package`", "but got 'sentense'")
    said = say(*check, "--set", "parameters.target_modules=atention", *column)
    assert said.is_error(2, "but got 'atention'", "but got 'sentense'")


def test_a_place_that_cannot_be_written_is_named(say, fresh_home, tmp_path):
    fresh_home.write_text("not a folder")
    assert say("launch", "movie_reviews").is_error(1, "must be writable", "LORAXS_HOME")
    assert fresh_home.read_text() == "not a folder"
    (tmp_path / "file").write_text("in the way")
    said = say("spaces", "copy", "movie_reviews", str(tmp_path / "file" / "mine.yaml"))
    assert said.is_error(1, "mine.yaml must be writable", "choose a place you can write to")
    assert "LORAXS_HOME" not in said.err


def test_an_account_in_an_address_is_refused_and_not_shown(say):
    for address in (["http://me:secret@a.example"], ["--tracking-uri", "http://me:secret@a.example"]):
        refused = say("ls", *address)
        assert refused.code != 0
        assert "secret" not in refused.out + refused.err


def test_a_task_or_variant_that_was_only_searched_is_to_be_promoted_or_waited_for(say, store_uri):
    german = study("german", store_uri, task=replace(TASK, variant="de"))
    assert "german" not in say("pull", "t").err
    assert say("pull", "t.de").is_error(1, "loraxs-search resume german")
    with german.lock():
        assert say("pull", "t.de").is_error(1, "loraxs-search status german")
    done = Candidate("done", "0", TASK.name, {"accuracy": 0.9}, {"accuracy": 0.9}, 100, "data", "base")
    study("done", store_uri).write_candidates([done])
    for line in (["predict", "t", "so so"], ["pull", "t"], ["show", "t"], ["history", "t"]):
        assert say(*line).is_error(1, "There is no task yet, but got 't'", "loraxs-search promote done")


def test_a_name_that_is_nearly_right_is_asked_about_first(say):
    said = say("status")
    assert (said.code, said.out) == (0, "study  task  state  trials  created\n")
    assert "loraxs-search launch movie_reviews" in said.err
    assert say("status", "--json").out == "[]\n"
    study("reviews"), study("review-2"), study("others")
    assert say("status", "othrs").is_error(1, "error: Did you mean others? `study` must be one of: others, ")
    assert "Did you mean" not in say("status", "reviewz").err, "two are as near"


def test_traceback_is_shown_wherever_it_is_asked_for_and_is_a_text_after_two_dashes(say, monkeypatch):
    for line in (["--traceback", "status", "x"], ["status", "--traceback", "x"], ["status", "x", "--traceback"]):
        said = say(*line)
        assert said.code == 1
        assert "Traceback (most recent call last)" in said.err
        assert "error: There is no study yet, but got 'x'." in said.err
    assert say("status", "--", "--traceback").is_error(1, "but got '--traceback'")
    raised = iter((ZeroDivisionError("by nought"), KeyboardInterrupt()))

    def broken(*args):
        raise next(raised)

    monkeypatch.setattr("loraxs_search.cli.studies.study_summaries", broken)
    assert say("status").is_error(1, "error: ZeroDivisionError: by nought", "--traceback")
    said = say("status")
    assert (said.code, said.err) == (130, "error: interrupted\n")


def verbs(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every verb of the command line, those of groups too: new ones are found by themselves."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*path, name))
        else:
            yield (*path, name), command


def is_document(said: Said, *codes: int) -> bool:
    """Check that stdout is one error, the same that stderr has."""
    document = json.loads(said.out)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "hint", "exit_code"}
    assert document["error"]["exit_code"] == said.code
    assert said.code in codes
    assert "fault of" not in said.err
    return said.is_error(said.code, document["error"]["message"], document["error"]["hint"])


def test_under_json_an_error_is_a_document_whichever_verb_it_is_of(say, store_uri):
    study("reviews")  # which `promote` takes, and `gc` asks for
    for verb, command in verbs(typer.main.get_command(app)):
        options = {option for parameter in command.params for option in parameter.opts}
        said = say(*verb, "--no-such-option", *(["--json"] if "--json" in options else []))
        if "--json" not in options:
            assert said.out == ""
            assert said.is_error(2, "`option` must be one of: ")
            continue
        assert is_document(said, 2)
        arguments = [p.required for p in command.params if p.param_type_name == "argument"]
        texts = ["so so"] if "--repl" in options else []
        if any(arguments):
            assert is_document(say(*verb, "--json"), 2)
        if arguments:
            said = say(*verb, *["no-such-thing"] * max(1, sum(arguments)), *texts, "--json")
            assert is_document(said, 1, 2)
            assert "no-such-thing" in said.err
        if "--tracking-uri" in options:
            names = ["t:1" if verb == ("rm",) else "movie_reviews"] * sum(arguments)
            assert is_document(say(*verb, *names, *texts, "--tracking-uri", "files/here", "--json"), 1, 2)


# ---- spaces and tasks ------------------------------------------------------------------------------------------------
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


def test_tasks_are_listed_and_shown_as_a_space_file_has_them(say, tmp_path):
    heading, *lines = say("tasks", "ls").ok.splitlines()
    assert heading.split() == ["task", "kind", "metric", "data", "about"]
    assert [line.split()[0] for line in lines] == shipped_tasks()
    assert re.search(r"^arc_easy +multiple-choice +accuracy +allenai/ai2_arc/ARC-Easy +Grade", "\n".join(lines), re.M)
    listed = json.loads(say("tasks", "ls", "--json").ok)
    assert [entry["name"] for entry in listed] == shipped_tasks()
    assert {"name", "kind", "metrics", "data", "about", "notes"} == set(listed[0])
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
    assert "pack size   auto: as many trials at once as fill the device" in say("check", str(tiny_space)).out
    told = say("check", str(tiny_space), "--data", "--set", "search.trials=3").out
    assert "pack size   auto: 3 at once on this machine (" in told
    assert "the 3 trials make one round)" in told
    assert "pack size   2\n" in say("check", str(tiny_space), "--data", "--set", "search.pack_size=2").out


# ---- what is printed -------------------------------------------------------------------------------------------------
def test_control_characters_are_written_out_and_numbers_that_are_none_are_null(fresh_home, say, capsys):
    assert plain("\x1b]0;mine\x07\r\x9b2J\u202e") == "\\x1b]0;mine\\x07\\r\\x9b2J\\u202e"
    assert plain("Größe\t日本\n") == "Größe\t日本\n"
    stream: Any = PlainText(io.StringIO())
    print("a\x1b[31mb", "c", file=stream)
    assert (stream.getvalue(), stream.isatty()) == ("a\\x1b[31mb c\n", False)
    searched("s", [Tried({"rank": 4, "target_modules": module}, 0.5) for module in ("ffn", "\x1b[2J\x9b31m")])
    shown = say("status", "s").ok
    assert "\\x1b[2J\\x9b31m" in shown
    assert not {"\x1b", "\x9b"} & set(shown)
    assert json.loads(say("status", "s", "--json").ok)["trials"][1]["params"]["target_modules"] == "\x1b[2J\x9b31m"
    print_json({"accuracy": float("nan"), "loss": float("inf")})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"accuracy": None, "loss": None}


def test_a_file_gets_data_and_talk_in_their_order_escaped_and_without_what_steers_a_terminal(fresh_home, tmp_path):
    folder = study("s")
    folder.journal().append(TrialStarted(trial_id="00000", params={"rank": "\u4f60\xe9"}))
    folder.inbox.put(Command("c1", "finish", sent_by="\x1b]0;stolen\x07\x1b[2Jsomebody"))
    plain_env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "loraxs_search", "status", "s"]
    with (tmp_path / "log").open("w") as log:
        env = {**plain_env, "PYTHONIOENCODING": "latin-1"}
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True, env=env)
    heading, trial, parameters, blank, talk, waits = (tmp_path / "log").read_text("latin-1").splitlines()
    starts = ("trial ", "00000 ", "its parameters: rank \\u4f60\xe9", "s: ")
    assert all(map(str.startswith, (heading, trial, parameters, talk), starts))
    assert (blank, waits) == ("", "not answered yet: finish (\\x1b]0;stolen\\x07\\x1b[2Jsomebody)")
