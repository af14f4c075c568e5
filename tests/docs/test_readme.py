"""README.md cannot drift: its commands and its Python run, its tables are made from the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from loraxs_search.base_model import head_shapes, linear_modules, locate
from loraxs_search.cli import run
from loraxs_search.errors import LoraxsError
from loraxs_search.records import BaseModel
from loraxs_search.search_space import Space, describe, load_space, parse_space, shipped_space_path, shipped_spaces

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LAUNCH = "launch movie_reviews --name reviews"  # what the shared search ran, sized down


@dataclass(frozen=True)
class Command:
    """A line `$ ...` of a console block, and what the README says it prints."""

    line: str
    output: tuple[str, ...]

    @property
    def args(self) -> list[str]:
        return shlex.split(self.line)[1:]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[Command]:
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, *output = part.splitlines()
            if line.split()[0] == program:
                found.append(Command(line, tuple(output)))
    return found


OURS = commands("loraxs-search")
LAUNCHES = [command for command in OURS if command.args[0] == "launch"]
RUN = [command for command in OURS if command.args[0] not in ("launch", "ui")]


def shape(line: str) -> str:
    """What stays of a line of output from one search to another: words, not numbers, digests and places."""
    line = re.sub(r"\S*/adapters/[0-9a-f]{64}", "FOLDER", line)
    return re.sub(r"-?\d[\d,.]*", "N", " ".join(line.split()))


# ---- commands --------------------------------------------------------------------------------------------------------
def test_the_readme_has_commands():
    assert {command.args[0] for command in OURS} == {
        *("launch", "promote", "pull", "predict", "spaces", "check", "status", "resume", "ui", "history", "ls", "show"),
        *("doctor", "sync"),
    }
    assert all(line.startswith("$ ") for block in blocks("console") for line in block.splitlines()[:1])


@pytest.mark.slow
def test_the_launch_on_the_first_screen_is_the_one_that_ran(searched):
    launch, _ = LAUNCHES
    assert launch.line == f"loraxs-search {LAUNCH}"
    shared = [word for word in launch.args if word not in ("launch",)]
    assert all(word in searched.launched.args for word in shared)
    printed = searched.launched.stdout + searched.launched.stderr
    told = [line for line in launch.output if line and line != "..." and not re.match(r"\d{5} ", line)]
    heading, *rest = told
    assert heading.split()[:9] == searched.launched.stdout.splitlines()[0].split()[:9]
    assert {shape(line) for line in rest} <= {shape(line) for line in printed.splitlines()}


@pytest.mark.slow
def test_two_spaces_are_launched_together(searched, sized_down, tmp_path):
    _, together = LAUNCHES
    shell = replace(searched.shell, folder=tmp_path)
    shell.ok("spaces", "copy", "movie_reviews", "mine.yaml")
    done = shell.run(*together.args, *sized_down)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("trial ") for line in done.stdout.splitlines()) == 2, "two leaderboards"
    assert re.findall(r"^study (\w+?)-", done.stderr, re.MULTILINE) == ["movie_reviews", "mine"]
    assert re.search(r"s  mine-\S+  trial 00000  COMPLETE", done.stderr), "lines say whose they are"


@pytest.mark.slow
@pytest.mark.parametrize("command", [pytest.param(c, id=c.line.removeprefix("loraxs-search ")) for c in RUN])
def test_a_command_runs_and_prints_what_the_readme_says(command, searched, readme_folder):
    done = replace(searched.shell, folder=readme_folder).run(*command.args)
    if command.args == ["promote", "reviews"]:  # by now it is the champion; the first decision is the fixture's
        assert done.returncode == 0, done.stderr
        done = searched.promoted
    assert done.returncode == 0, done.stderr
    printed = {shape(line) for line in (done.stdout + done.stderr).splitlines()}
    said = [re.sub(r"^(positive|negative)\t", "LABEL\t", line) for line in command.output if line]
    labels = {re.sub(r"^(positive|negative) ", "LABEL ", line) for line in printed}
    assert {shape(line) for line in said} <= labels


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader who goes from top to bottom is."""
    return tmp_path_factory.mktemp("readme")


def test_verbs_and_options_named_in_the_text_exist(capsys):
    named = {tuple(words.split()) for words in re.findall(r"`loraxs-search ([a-z ]+?)`", README)}
    for verb in {words[0] for words in named}:
        assert run([verb, "--help"]) == 0
    helps = []
    for verb in sorted({command.args[0] for command in OURS} - {"spaces"} | {"rollback", "rm"}):
        capsys.readouterr()
        run([verb, "--help"])
        helps.append(capsys.readouterr().out)
    run(["--help"])
    everything = "\n".join([*helps, capsys.readouterr().out])
    for option in set(re.findall(r"`(--[a-z-]+)", README)):
        assert option in everything, option


def test_make_targets_named_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)`", README)) <= targets


def test_the_base_package_is_the_one_that_is_installed_for_the_tests():
    assert [c.line for c in commands("pip")][1].split()[-1] in (ROOT / "Makefile").read_text()


# ---- python and yaml -------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_python_runs(searched):
    base = next((searched.shell.home / "base_models").glob("*/config.json")).parent
    blocks_here = [b.replace('"sentence-transformers/all-MiniLM-L6-v2"', repr(str(base))) for b in blocks("python")]
    checks = "assert type(model).__name__ == 'PeftModelForSequenceClassification' and not model.training\n"
    program = "".join(block + checks for block in blocks_here) + EXPORT
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=searched.shell.folder,
        env=searched.shell.environment(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr


EXPORT = """
import pathlib
from loraxs_search.methods.loraxs import export_lora
export_lora(model, "default", pathlib.Path("exported"))
assert pathlib.Path("exported/adapter_config.json").exists()
assert type(model.merge_and_unload()).__name__ == "BertForSequenceClassification"
"""


def test_the_functions_named_exist():
    import loraxs_search

    for name in set(re.findall(r"loraxs_search\.(\w+)\(", README)):
        assert name in loraxs_search.__all__ or name == "adapter", name


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_yaml_block_is_a_sound_space(text, tmp_path):
    (tmp_path / "reviews.csv").write_text("sentence,label\n")
    space = parse_space(text, source="README.md", folder=tmp_path)
    assert space.grid_size() is None


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_yaml_is_sound(path):
    assert load_space(str(path)).name in shipped_spaces()


def test_the_grammar_table_names_every_key():
    """Each key of each section stands in the table, and what the table names is a key."""
    from loraxs_search.search_space._parameter_specs import PARAMETER_SPECS
    from loraxs_search.search_space._sections import DataSection, PromotionSection, SearchSection, TaskSection
    from loraxs_search.tasks import catalogue_names

    rows = dict(re.findall(r"^\| `?([\w. ]+)`? \| (.*) \|$", README, re.MULTILINE))
    for row, keys in {
        "task": {*TaskSection.model_fields, *catalogue_names(), "text", "text_pair", "label"},
        "task.data": set(DataSection.model_fields),
        "parameters": set(PARAMETER_SPECS),
        "search": set(SearchSection.model_fields) | {"asha", "none"},
        "promotion": set(PromotionSection.model_fields),
    }.items():
        assert set(re.findall(r"`(\w+)`", rows[row])) == keys, row


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


# ---- sizes -----------------------------------------------------------------------------------------------------------
def test_the_table_of_sizes_is_true(in_warm_home, tmp_path):
    """Made anew and compared; to change it, paste what this test prints."""
    expected = "\n".join(size_table(tmp_path))
    found = re.search(r"<!-- sizes[^>]*-->\n(.*?)<!-- /sizes -->", README, re.DOTALL)
    assert found is not None
    assert found[1].strip() == expected, f"\n{expected}\n"


def size_table(folder: Path) -> Iterator[str]:
    yield "| space | base | smallest: rank, modules | R | head | bytes | largest: rank, modules | R | head | bytes |"
    yield "|---|---|---|--:|--:|--:|---|--:|--:|--:|"
    for name in shipped_spaces():
        space = load_space(str(shipped_space_path(name)))
        base, task = _base(space, folder), space.task
        modules = linear_modules(base, task.kind, len(task.labels))
        heads = {head: head_shapes(base, task.kind, len(task.labels), head) for head in ("full", "output")}
        said = describe(space, modules, heads=heads)
        cells = [name, space.base_model.id.rpartition("/")[2]]
        for it in (said.smallest, said.largest):
            size = (it.size.r_parameters, it.size.head_parameters, it.size.stored_bytes)
            cells += [f"{it.rank}, {it.target_modules}", *(f"{number:,}" for number in size)]
        yield f"| {' | '.join(cells)} |"


def _base(space: Space, folder: Path) -> BaseModel:
    """The space's base where it is installed; else its configuration, which is all that sizes depend on."""
    try:
        return locate(space.base_model)
    except LoraxsError:
        from transformers import RobertaConfig

        assert space.base_model.id == "FacebookAI/roberta-large"
        config = RobertaConfig(
            vocab_size=50265,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            max_position_embeddings=514,
            type_vocab_size=1,
        )
        config.save_pretrained(folder)
        return BaseModel(space.base_model.id, str(folder), "")
