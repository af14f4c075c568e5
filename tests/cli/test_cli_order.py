"""What is data and what is talk come in the order in which they were said, where both go to one file or pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.studies import study as new_study

from loraxs_search.log.events import TrialStarted


@pytest.fixture
def command(fresh_home: Path) -> list[str]:
    new_study("s").journal().append(TrialStarted(trial_id="00000", params={"rank": 4}))
    return [sys.executable, "-m", "loraxs_search", "status", "s"]


def in_order(lines: list[str]) -> bool:
    starts = ("trial ", "00000 ", "its parameters: rank 4", "s: ")
    heading, trial, parameters, blank, talk, _ = lines
    return blank == "" and all(map(str.startswith, (heading, trial, parameters, talk), starts))


def test_in_a_file(command: list[str], tmp_path: Path) -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with (tmp_path / "log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True, env=buffered)
    text = (tmp_path / "log").read_text()
    assert in_order(text.splitlines()), text
