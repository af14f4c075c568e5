"""search_spaces/README.md cannot drift: its sizes are the code's, its YAML is valid, its commands run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.in_process import InProcess
from support.pages import README, ROOT, SEARCH_SPACES
from transformers import PretrainedConfig

from loraxs_search.base_model import body_shapes, head_shapes, linear_modules, locate
from loraxs_search.errors import LoraxsError
from loraxs_search.records import BaseModel, TaskModel
from loraxs_search.search_space import Space, describe, load_space, parse_space
from loraxs_search.shipped_spaces import shipped_space_path, shipped_spaces, shipped_tasks
from loraxs_search.tasks.kinds import kind_of

OURS = SEARCH_SPACES.commands("loraxs-search")
LAUNCHES = [command for command in OURS if command.args[0] == "launch" and "--dry-run" not in command.args]
RUN = [command for command in OURS if command not in LAUNCHES]


# ---- commands --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader who goes from top to bottom is."""
    return tmp_path_factory.mktemp("spaces")


@pytest.mark.slow
@pytest.mark.parametrize("command", [pytest.param(c, id=c.line.removeprefix("loraxs-search ")) for c in RUN])
def test_a_command_runs(command, searched, folder, sized_down):
    less = sized_down if command.args[0] == "launch" else []
    assert InProcess(searched.shell.home, folder).ok(*command.args, *less)


@pytest.mark.slow
@pytest.mark.long
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


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_yaml_is_valid(path):
    assert load_space(str(path)).name in shipped_spaces()


_WORDS = {"two": 2.0, "three": 3.0, "about 50": 50.0}


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_space_says_how_many_epochs_its_steps_are(path):
    found = re.search(r"max_steps: (\d+) +# (.+) epochs of ([\d,]+) (?:rows|pairs)\n", path.read_text())
    assert found is not None
    steps, epochs, rows = int(found[1]), _WORDS.get(found[2]), int(found[3].replace(",", ""))
    batch = load_space(str(path)).parameters["batch_size"].possible
    assert batch is not None
    assert steps * int(batch[0]) / rows == pytest.approx(float(found[2]) if epochs is None else epochs, rel=0.07)


# ---- names ---------------------------------------------------------------------------------------------------------
def test_every_well_known_task_is_named():
    named = set(re.findall(r"`(\w+)`", SEARCH_SPACES.text))
    assert set(shipped_tasks()) <= named


# ---- sizes -----------------------------------------------------------------------------------------------------------
def test_the_table_of_sizes_is_true(in_warm_home, tmp_path):
    """Made anew and compared; to change it, paste what this test prints."""
    expected = "\n".join(size_table(tmp_path))
    table = re.search(r"<!-- sizes[^>]*-->\n(.*?)<!-- /sizes -->", SEARCH_SPACES.text, re.DOTALL)
    assert table is not None
    assert table[1].strip() == expected, f"\n{expected}\n"


def size_table(folder: Path) -> Iterator[str]:
    yield "| space | base | smallest: rank, modules | R | head | bytes | largest: rank, modules | R | head | bytes |"
    yield "|---|---|---|--:|--:|--:|---|--:|--:|--:|"
    for name in shipped_spaces():
        space = load_space(str(shipped_space_path(name)))
        modules, heads, body = shapes(_base(space, folder), kind_of(space.task).model)
        described = describe(space, modules, heads=heads, body=body).methods
        for method, said in described.items():
            title = name if len(described) == 1 else f"{name}, {method}"
            cells = [title, space.base_model.id.rpartition("/")[2]]
            for it in (said.smallest, said.largest):
                size = (it.size.r_parameters, it.size.head_parameters, it.size.stored_bytes)
                cells += [f"{it.params.get('rank', '-')}, {it.target_modules}", *(f"{number:,}" for number in size)]
            yield f"| {' | '.join(cells)} |"


@cache  # most spaces share their base with another one
def shapes(base: BaseModel, model: TaskModel) -> tuple[Any, Any, Any]:
    """Return the layers of a base with a task's model, the parameters of each head, and those of its body."""
    heads = {head: head_shapes(base, model, head) for head in ("full", "output")}
    return linear_modules(base, model), heads, body_shapes(base, model)


def _base(space: Space, folder: Path) -> BaseModel:
    """The space's base where it is installed; else its configuration, which is all that sizes depend on."""
    try:
        return locate(space.base_model)
    except LoraxsError:
        pass
    config = configuration(space.base_model.id)
    own = folder / config.model_type / str(config.hidden_size)
    config.save_pretrained(own)
    return BaseModel(space.base_model.id, str(own), "")


def configuration(base: str) -> PretrainedConfig:
    """Return the configuration of a base on the hub, as far as sizes depend on it."""
    from transformers import GemmaConfig, LlamaConfig, MistralConfig, RobertaConfig

    grouped = {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32}
    wide = {"hidden_size": 4096, "intermediate_size": 14336, **grouped}
    small = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "head_dim": 128}
    gemma = {"hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "head_dim": 256}
    roberta = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return {
        "FacebookAI/roberta-large": RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, **roberta
        ),
        "google/gemma-7b": GemmaConfig(vocab_size=256000, num_attention_heads=16, num_key_value_heads=16, **gemma),
        "mistralai/Mistral-7B-v0.1": MistralConfig(vocab_size=32000, **wide),
        "meta-llama/Meta-Llama-3-8B": LlamaConfig(vocab_size=128256, **wide),
        "meta-llama/Llama-3.2-3B": LlamaConfig(
            vocab_size=128256, num_attention_heads=24, num_key_value_heads=8, tie_word_embeddings=True, **small
        ),
    }[base]
