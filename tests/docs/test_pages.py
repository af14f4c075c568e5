"""What holds for every page: links lead somewhere, options and targets exist, sentences are short and plain."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from support.pages import BENCHMARKS, PAGES, README, ROOT, SEARCH_SPACES

from loraxs_search.cli._main import app

SCRIPTS = ROOT / "tests" / "benchmarks"
LONGEST_SENTENCE = 30  # words
# Words that names.md and style.md give up, and turns that have to be read twice.
OUTDATED = r"told|tells|amiss|mended|anew|hence|thereof|beforehand|of itself|of themselves|in order(?! to)"
YAML_FILES = [path for folder in ("search_spaces", "cluster") for path in sorted((ROOT / folder).rglob("*.yaml"))]
GROUP: Any = typer.main.get_command(app)


def options_of_verbs() -> set[str]:
    """Return every option of the command line."""
    groups = [GROUP, *(GROUP.commands[name] for name in ("spaces", "studies", "tasks"))]
    commands = [command for group in groups for command in (group, *group.commands.values())]
    return {option for command in commands for param in command.params for option in param.opts} | {"--help"}


def options_of_script(path: Path) -> set[str]:
    """Return the options of a benchmark, those of the benchmarks that it imports from included; nothing is run."""
    options = {"--help"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            options |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
        elif isinstance(node, ast.ImportFrom) and (SCRIPTS / f"{node.module}.py").exists():
            options |= options_of_script(SCRIPTS / f"{node.module}.py")
    return options


# ---- what is named exists --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_links_to_files_lead_somewhere(page):
    for written, path in page.links():
        assert path.exists(), written
    assert set(re.findall(r"\]\(#([^)]+)\)", page.text)) <= page.anchors()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_make_targets_named_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)`", page.text)) <= targets


@pytest.mark.parametrize("page", [README, SEARCH_SPACES], ids=lambda page: page.path)
def test_options_named_exist(page):
    assert set(re.findall(r"`(?:[a-z ]+ )?(--[a-z-]+)", page.text)) <= options_of_verbs()


def test_every_page_is_reached_from_the_readme():
    linked = {path.resolve() for _, path in README.links()}
    assert {(ROOT / page.path).resolve() for page in PAGES if page is not README} <= linked


# ---- benchmarks ------------------------------------------------------------------------------------------------------
def benchmark_commands() -> list[list[str]]:
    """Return every call of a benchmark on its page, as the shell would split it."""
    return [shlex.split(line) for line in re.findall(r"python (tests/benchmarks/[^`\n]+)", BENCHMARKS.text)]


@pytest.mark.parametrize("command", benchmark_commands(), ids=" ".join)
def test_a_benchmark_knows_its_options(command):
    script, *args = command
    assert (ROOT / script).is_file()
    assert {word for word in args if word.startswith("--")} <= options_of_script(ROOT / script)


def test_options_of_benchmarks_named_in_the_text_exist():
    known = {option for path in SCRIPTS.glob("bench_*.py") for option in options_of_script(path)} | options_of_verbs()
    assert set(re.findall(r"`(--[a-z-]+)", BENCHMARKS.text)) <= known


def test_the_page_has_every_benchmark_and_its_command():
    scripts = {path.name for path in SCRIPTS.glob("bench_*.py")}
    assert set(re.findall(r"`(bench_\w+\.py)`", BENCHMARKS.text)) == scripts
    assert {Path(command[0]).name for command in benchmark_commands()} == scripts


# ---- language --------------------------------------------------------------------------------------------------------
def test_the_readme_is_short():
    assert len(README.text.splitlines()) <= 220
    first_screen = README.text.splitlines()[:50]
    assert all(any(f"`make {target}`" in line for line in first_screen) for target in ("demo", "test"))


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; what stands between backticks is one word."""
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "CODE", text))
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:[-*#]|\d+\.) )", text)
    return [s for part in parts for s in re.split(r"(?<=[.:?!;])\s+", " ".join(part.split())) if s]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_sentences_are_short_and_plain(page):
    said = sentences(page.prose)
    assert len(said) > 20
    assert [s for s in said if len(s.split()) > LONGEST_SENTENCE] == []
    assert [s for s in said if re.search(rf"\b({OUTDATED})\b", s)] == []


@pytest.mark.parametrize("verb", GROUP.commands)
def test_help_is_short_and_plain(verb):
    said = sentences(GROUP.commands[verb].help)
    assert [s for s in said if len(s.split()) > LONGEST_SENTENCE] == []
    assert [s for s in said if re.search(rf"\b({OUTDATED})\b", s)] == []


def every_verb() -> dict[str, Any]:
    """Return each verb by what is typed for it, those of groups included."""
    verbs = {}
    for name, command in GROUP.commands.items():
        inner = getattr(command, "commands", None)
        verbs |= {name: command} if inner is None else {f"{name} {own}": each for own, each in inner.items()}
    return verbs


@pytest.mark.parametrize("verb", every_verb())
def test_help_ends_with_an_example_that_parses(verb):
    command = every_verb()[verb]
    last = " ".join(command.help.rstrip().rpartition("\n\n")[2].split())
    assert last.startswith(f"Example: loraxs-search {verb}")
    line, _, _ = last.removeprefix(f"Example: loraxs-search {verb}").partition(">")
    command.make_context(verb, shlex.split(line))


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_the_head_of_a_yaml_is_short_and_plain(path):
    head = re.sub(r"^# ?", "", path.read_text().partition("\n\n")[0], flags=re.MULTILINE)
    said = sentences(re.sub(r"^( {4,}|\w+: {3,}).*$", "", head, flags=re.MULTILINE))
    assert [s for s in said if len(s.split()) > LONGEST_SENTENCE] == []
    assert [s for s in said if re.search(rf"\b({OUTDATED})\b", s)] == []
