"""Tables and talk steer no terminal, whatever the names, tags and params in them are."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from support.searched_studies import Tried, searched
from support.studies import study

from loraxs_search.cli._out import PlainText, plain, print_json
from loraxs_search.log.events import TrialStarted
from loraxs_search.records.search import Command


def test_control_characters_are_written_out_and_text_stays():
    assert plain("\x1b]0;mine\x07\r\x9b2J\u202e") == "\\x1b]0;mine\\x07\\r\\x9b2J\\u202e"
    assert plain("Größe\t日本\n") == "Größe\t日本\n"


def test_a_plain_stream_writes_plain_text_and_is_else_the_one_below():
    stream: Any = PlainText(io.StringIO())
    print("a\x1b[31mb", "c", file=stream)
    assert (stream.getvalue(), stream.isatty()) == ("a\\x1b[31mb c\n", False)


def test_a_score_that_is_no_number_is_null_in_json(capsys):
    print_json({"accuracy": float("nan"), "loss": float("inf")})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"accuracy": None, "loss": None}


def test_a_table_in_a_pipe_steers_no_terminal_behind_it(fresh_home, say):
    searched("s", [Tried({"rank": 4, "target_modules": module}, 0.5) for module in ("ffn", "\x1b[2J\x9b31m")])
    shown = say("status", "s").ok
    assert "\\x1b[2J\\x9b31m" in shown
    assert not {"\x1b", "\x9b"} & set(shown)
    assert json.loads(say("status", "s", "--json").ok)["trials"][1]["params"]["target_modules"] == "\x1b[2J\x9b31m"


def test_a_command_of_somebody_else_in_status(fresh_home):
    folder = study("s")
    folder.inbox.put(Command("c1", "finish", sent_by="\x1b]0;stolen\x07\x1b[2Jsomebody"))
    command = [sys.executable, "-m", "loraxs_search", "status", "s"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "not answered yet: finish (\\x1b]0;stolen\\x07\\x1b[2Jsomebody)" in said
    assert "\x1b]0" not in said


def test_data_and_talk_come_in_the_order_in_which_they_were_said_in_a_file(fresh_home, tmp_path):
    study("s").journal().append(TrialStarted(trial_id="00000", params={"rank": 4}))
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "loraxs_search", "status", "s"]
    with (tmp_path / "log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True, env=buffered)
    heading, trial, parameters, blank, talk = (tmp_path / "log").read_text().splitlines()
    starts = ("trial ", "00000 ", "its parameters: rank 4", "s: ")
    assert all(map(str.startswith, (heading, trial, parameters, talk), starts))
    assert blank == ""
