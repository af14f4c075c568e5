"""search_spaces/README.md cannot drift: its YAML is valid, its commands run."""

from __future__ import annotations

import re

import pytest
import yaml
from support.in_process import InProcess
from support.pages import README, ROOT, SEARCH_SPACES

from loraxs_search.home import shipped_spaces, shipped_tasks
from loraxs_search.search_space.load import load_space, parse_space

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


@pytest.mark.slow
@pytest.mark.long(part="search")
def test_two_spaces_are_launched_together(fresh_home, sized_down, tiny_base, tmp_path):
    (together,) = LAUNCHES
    shell = InProcess(fresh_home, tmp_path)
    shell.ok("spaces", "copy", "movie_reviews", "mine.yaml")
    tiny = (f"base_model={tiny_base}", "parameters.rank={choice: [2, 4]}", "promotion.seeds=0")
    options = [part for override in tiny for part in ("--set", override)]
    done = shell.run(*together.args, *sized_down, *options)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("trial ") for line in done.stdout.splitlines()) == 2, "two leaderboards"
    assert re.findall(r"^study (\w+?)-", done.stderr, re.MULTILINE) == ["movie_reviews", "mine"]
    assert re.search(r"s  mine-\S+  trial 00000  COMPLETE", done.stderr), "lines say whose they are"


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


def test_the_forms_show_every_form():
    forms = " ".join(SEARCH_SPACES.blocks("yaml")[1:])
    for form in ("choice", "int", "uniform", "log_uniform", "value", "step", "log", "when"):
        assert re.search(rf"\b{form}: ", forms), form


_WORDS = {"two": 2.0, "three": 3.0, "about 50": 50.0}


def test_every_shipped_space_says_how_many_epochs_its_steps_are():
    for path in sorted((ROOT / "search_spaces").glob("*.yaml")):
        found = re.search(r"max_steps: (\d+) +# (.+) epochs of ([\d,]+) (?:rows|pairs)\n", path.read_text())
        assert found is not None, path
        space = load_space(str(path))
        assert space.name in shipped_spaces()
        steps, epochs, rows = int(found[1]), _WORDS.get(found[2]), int(found[3].replace(",", ""))
        batch = space.parameters["batch_size"].possible
        assert batch is not None
        said = float(found[2]) if epochs is None else epochs
        assert steps * int(batch[0]) / rows == pytest.approx(said, rel=0.07), path


def test_every_well_known_task_is_named():
    assert set(shipped_tasks()) <= set(re.findall(r"`(\w+)`", SEARCH_SPACES.text))
