"""search_spaces/README.md cannot drift: its YAML is valid, its commands run."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer
import yaml
from support.in_process import InProcess
from support.pages import README, SEARCH_SPACES

from loraxs_search.cli._main import app
from loraxs_search.home import shipped_tasks
from loraxs_search.search_space.load import parse_space

OURS = SEARCH_SPACES.commands("loraxs-search")
MORE_ROWS = [command for command in OURS if {"v2.csv", "second"} & {*command.args}]  # of rows that are not here
LAUNCHES = [command for command in OURS if command.args[0] == "launch" and command not in MORE_ROWS]
RUN = [command for command in OURS if command not in (*LAUNCHES, *MORE_ROWS)]


# ---- commands --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader who goes from top to bottom is."""
    return tmp_path_factory.mktemp("spaces")


@pytest.mark.slow
@pytest.mark.parametrize("command", [pytest.param(c, id=c.line.removeprefix("loraxs-search ")) for c in RUN])
def test_a_command_runs(command, searched, folder):
    assert InProcess(searched.shell.home, folder).ok(*command.args)


def test_commands_of_long_searches_and_of_rows_that_are_not_here_are_understood():
    group: Any = typer.main.get_command(app)
    for command in (*LAUNCHES, *MORE_ROWS):
        verb, *rest = command.args
        group.commands[verb].make_context(verb, rest)


# ---- yaml ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", [README, SEARCH_SPACES], ids=lambda page: page.path)
def test_a_yaml_block_is_a_valid_space(page, tmp_path):
    """A part takes the place of its section of the whole file; another task has other metrics to promote by."""
    for name in re.findall(r"\w+\.(?:csv|jsonl|conll)\b", page.text):
        (tmp_path / name).write_text("sentence,label\n")
    blocks = page.blocks("yaml")
    whole = next(block for block in blocks if "base_model:" in block and "parameters:" in block)
    parts = [block for block in blocks if block is not whole]
    space = parse_space(whole, source=page.path, folder=tmp_path)
    assert space.grid_size() is None
    for part in parts:
        section = yaml.safe_load(part)
        text = yaml.safe_dump(yaml.safe_load(whole) | ({"promotion": {}} if "task" in section else {}) | section)
        assert parse_space(text, source=page.path, folder=tmp_path).parameters.keys() >= {"rank", "learning_rate"}


def test_every_well_known_task_is_named():
    assert set(shipped_tasks()) <= set(re.findall(r"`(\w+)`", SEARCH_SPACES.text))
