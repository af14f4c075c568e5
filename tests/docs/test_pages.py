"""What holds for every page: links lead somewhere, what is named exists, and examples parse."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import typer
from support.pages import BENCHMARKS, CONTRIBUTING, PAGES, README, ROOT, SEARCH_SPACES

from loraxs_search.cli._main import app

SCRIPTS = ROOT / "tests" / "benchmarks"
GROUP: Any = typer.main.get_command(app)


def options_of_verbs() -> set[str]:
    """Return every option of the command line."""
    groups = [GROUP, *(GROUP.commands[name] for name in ("spaces", "studies", "tasks"))]
    commands = [command for group in groups for command in (group, *group.commands.values())]
    return {option for command in commands for param in command.params for option in param.opts} | {"--help"}


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
        assert set(re.findall(r"`(?:[a-z ]+ )?(--[a-z-]+)", page.text)) <= options_of_verbs(), page.path


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
def given_to_pip_by_name(text: str) -> list[str]:
    """Return every mention of this package that pip would look up on an index."""
    calls = re.findall(r"pip3? install ([^\n`;|&]*)", text.replace("\\\n", " "))
    words = [word.strip("'\".,)") for call in calls for word in call.split()]
    return [word for word in words if re.fullmatch(r"loraxs[-_.]search(\[.*)?([=<>~!@].*)?", word, re.IGNORECASE)]


def test_nothing_installs_this_package_from_an_index():
    """It is on none: whoever takes its name there would be installed."""
    folders = [ROOT / name for name in ("cluster", "loraxs_search", "search_spaces", "tests/benchmarks")]
    texts = (".html", ".ini", ".j2", ".json", ".md", ".py", ".sbatch", ".sh", ".yaml", "")
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in texts and path.is_file()]
    files += [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "tests" / "demo.sh"]
    assert {"README.md", "Makefile", "Dockerfile", "serve.py", "aws.yaml"} <= {path.name for path in files}
    found = {str(path.relative_to(ROOT)): given_to_pip_by_name(path.read_text()) for path in files}
    assert {path: words for path, words in found.items() if words} == {}


# ---- benchmarks ------------------------------------------------------------------------------------------------------
def benchmark_commands() -> list[list[str]]:
    """Return every call of a benchmark on its page, as the shell would split it."""
    return [shlex.split(line) for line in re.findall(r"python (tests/benchmarks/[^`\n]+)", BENCHMARKS.text)]


def test_a_benchmark_knows_its_options():
    for script, *args in benchmark_commands():
        assert {word for word in args if word.startswith("--")} <= options_of_script(ROOT / script), script


def test_the_page_has_every_benchmark_and_its_command():
    known = {option for path in SCRIPTS.glob("bench_*.py") for option in options_of_script(path)} | options_of_verbs()
    assert set(re.findall(r"`(--[a-z-]+)", BENCHMARKS.text)) <= known
    scripts = {path.name for path in SCRIPTS.glob("bench_*.py")}
    assert set(re.findall(r"`(bench_\w+\.py)`", BENCHMARKS.text)) == scripts
    assert {Path(command[0]).name for command in benchmark_commands()} == scripts


# ---- reading ---------------------------------------------------------------------------------------------------------
def test_the_readme_is_short():
    assert len(README.text.splitlines()) <= 220
    assert any("`make demo`" in line for line in README.text.splitlines()[:50])


def every_verb() -> dict[str, Any]:
    """Return each verb by what is typed for it, those of groups included."""
    verbs = {}
    for name, command in GROUP.commands.items():
        inner = getattr(command, "commands", None)
        verbs |= {name: command} if inner is None else {f"{name} {own}": each for own, each in inner.items()}
    return verbs


def test_help_ends_with_an_example_that_parses():
    for verb, command in every_verb().items():
        last = " ".join(command.help.rstrip().rpartition("\n\n")[2].split())
        assert last.startswith(f"Example: loraxs-search {verb}")
        line, _, _ = last.removeprefix(f"Example: loraxs-search {verb}").partition(">")
        command.make_context(verb, shlex.split(line))
