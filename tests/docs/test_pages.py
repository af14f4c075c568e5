"""What holds for every page: links lead somewhere, what is named exists, and examples parse."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from support.in_process import InProcess
from support.pages import BENCHMARKS, CONTRIBUTING, PAGES, README, ROOT, SEARCH_SPACES

from loraxs_search.cli._main import app
from loraxs_search.home import shipped_tasks
from loraxs_search.search_space.load import parse_space

SCRIPTS = ROOT / "tests" / "benchmarks"
GROUP: Any = typer.main.get_command(app)


GROUPS = [GROUP, *(GROUP.commands[name] for name in ("spaces", "studies", "tasks"))]
COMMANDS = [command for group in GROUPS for command in (group, *group.commands.values())]
OPTIONS = {option for command in COMMANDS for param in command.params for option in param.opts} | {"--help"}


def options_of_script(path: Path) -> set[str]:
    """Return the options of a benchmark, those of the scripts that it imports from included; nothing is run."""
    options = {"--help"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            options |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            for other in (SCRIPTS / f"{name}.py" for name in names):
                options |= options_of_script(other) if other.exists() else set()
    return options


# ---- what is named exists --------------------------------------------------------------------------------------------
def test_links_lead_somewhere_and_make_targets_and_options_named_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for written, path in page.links():
            assert path.exists(), (page.path, written)
        assert set(re.findall(r"\]\(#([^)]+)\)", page.text)) <= page.anchors(), page.path
        assert set(re.findall(r"`make (\w+)`", page.text)) <= targets, page.path
    for page in (README, SEARCH_SPACES):
        assert set(re.findall(r"`(?:[a-z ]+ )?(--[a-z-]+)", page.text)) <= OPTIONS, page.path


def test_every_page_is_reached_from_the_readme():
    linked = {path.resolve() for _, path in README.links()}
    assert {(ROOT / page.path).resolve() for page in PAGES if page is not README} <= linked


def test_files_that_contributing_names_exist():
    """A file of the package is named from the package's folder, a test by its name alone; NAME stands for a new one."""
    files = [path for folder in ("loraxs_search", "tests") for path in (ROOT / folder).rglob("*.py")]
    known = {path.name for path in files} | {f"{path.parent.name}/" for path in files}
    for path in set(re.findall(r"`([\w./]+(?:\.py|/))`", CONTRIBUTING.text)):
        if not re.search("NAME|PACKAGE", path):
            found = [(ROOT / folder / path).exists() for folder in ("", "loraxs_search")]
            assert any(found) or path in known, path


def test_names_that_contributing_places_are_in_their_files():
    placed = re.findall(r"`(\w+)`(?: \([^)]*\))? in `([\w/]+\.py)`", CONTRIBUTING.text)
    assert len(placed) > 10
    for name, path in placed:
        folder = "tests/contracts" if path.startswith("test_") else "loraxs_search"
        assert re.search(rf"\b{name}\b", (ROOT / folder / path).read_text()), f"{name} in {path}"


# ---- installing -----------------------------------------------------------------------------------------------------
def test_nothing_installs_this_package_from_an_index():
    """It is on none: whoever takes its name there would be installed."""
    folders = [ROOT / name for name in ("cluster", "loraxs_search", "search_spaces", "tests/benchmarks")]
    texts = (".html", ".ini", ".j2", ".json", ".md", ".py", ".sbatch", ".sh", ".yaml", "")
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in texts and path.is_file()]
    files += [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "tests" / "demo.sh"]
    assert {"README.md", "Makefile", "Dockerfile", "serve.py", "aws.yaml"} <= {path.name for path in files}
    for path in files:
        calls = re.findall(r"pip3? install ([^\n`;|&]*)", path.read_text().replace("\\\n", " "))
        words = [word.strip("'\".,)") for call in calls for word in call.split()]
        ours = r"loraxs[-_.]search(\[.*)?([=<>~!@].*)?"
        assert not [word for word in words if re.fullmatch(ours, word, re.IGNORECASE)], path


# ---- benchmarks ------------------------------------------------------------------------------------------------------
def test_the_page_has_every_benchmark_and_its_command_with_options_that_it_knows():
    scripts = {path.name: options_of_script(path) for path in SCRIPTS.glob("bench_*.py")}
    assert set(re.findall(r"`(--[a-z-]+)", BENCHMARKS.text)) <= set.union(OPTIONS, *scripts.values())
    assert set(re.findall(r"`(bench_\w+\.py)`", BENCHMARKS.text)) == set(scripts)
    commands = [shlex.split(line) for line in re.findall(r"python tests/benchmarks/([^`\n]+)", BENCHMARKS.text)]
    assert {script for script, *_ in commands} == set(scripts)
    for script, *args in commands:
        assert {word for word in args if word.startswith("--")} <= scripts[script], script


# ---- reading ---------------------------------------------------------------------------------------------------------
def test_the_readme_is_short():
    assert len(README.text.splitlines()) <= 220
    assert any("`make demo`" in line for line in README.text.splitlines()[:50])


def test_help_ends_with_an_example_that_parses():
    verbs = {}
    for name, command in GROUP.commands.items():
        inner = getattr(command, "commands", None)
        verbs |= {name: command} if inner is None else {f"{name} {own}": each for own, each in inner.items()}
    for verb, command in verbs.items():
        last = " ".join(command.help.rstrip().rpartition("\n\n")[2].split())
        assert last.startswith(f"Example: loraxs-search {verb}")
        line, _, _ = last.removeprefix(f"Example: loraxs-search {verb}").partition(">")
        command.make_context(verb, shlex.split(line))


# ---- search_spaces/README.md -----------------------------------------------------------------------------------------
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
    for verb, *rest in (command.args for command in (*LAUNCHES, *MORE_ROWS)):
        GROUP.commands[verb].make_context(verb, rest)


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


# ---- benchmarks of what is not here run to their end, on what is -----------------------------------------------------
def run(tmp_path: Path, *arguments: str, benchmark: str = "bench_gpu") -> dict[str, Any]:
    found = tmp_path / "found.json"
    command = [sys.executable, str(SCRIPTS / f"{benchmark}.py"), *arguments, "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(found.read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
def test_the_benchmark_of_a_gpu_says_that_there_is_none(tmp_path):
    assert run(tmp_path) == {"not measured": "there is no GPU"}


@pytest.mark.long(part="search")
def test_its_path_works_on_a_cpu_with_tiny_bases(tmp_path, in_warm_home):
    short = ("--rounds", "1", "--seconds", "0.2", "--slots", "2", "--processes", "2")
    found = run(tmp_path, "--on-cpu", "--bases", "tiny-decoder", *short)["tiny-decoder"]
    assert [row["slots"] for row in found["rows"]] == ["lone", 2]
    assert found["processes_steps_per_s"] > 0


def test_validation_rows_choose_without_bias_and_test_rows_decide_without_luck(tmp_path):
    """200 searches of equally good trials from a fixed seed: what took 8 trials' best by test rows is biased."""
    found = run(tmp_path, "--quick", benchmark="bench_promotion")
    before, now = found["test rows choose"], found["validation rows choose"]
    assert before["8 candidates"]["bias"] > 1.0
    assert before["8 candidates"]["error"] > 0.05
    for size in ("1 candidates", "3 candidates", "8 candidates"):
        assert abs(now[size]["bias"]) < 2.5 * now[size]["bias_se"]
        assert now[size]["error"] <= 0.06
    assert now["20 searches"]["drift"] < before["20 searches"]["drift"]
    assert now["20 searches"]["false_promotions"] < before["20 searches"]["false_promotions"]
    assert max(values["error"] for values in found["equal adapters, few test rows"].values()) <= 0.12  # of 50 pairs
