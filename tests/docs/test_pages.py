"""No page can drift: links lead somewhere, what is named exists, and commands, spaces and Python run."""

from __future__ import annotations

import ast
import csv
import gzip
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from support.in_process import InProcess
from support.pages import BENCHMARKS, CONTRIBUTING, PAGES, README, ROOT, SEARCH_SPACES
from support.shell import Shell, free_port
from support.spaces import QUICKSTART
from support.toys import promote, seal

import loraxs_search
from loraxs_search.base_model.locate import locate
from loraxs_search.cli._main import app, run
from loraxs_search.home import shipped_space_path, shipped_tasks
from loraxs_search.manifest import verify
from loraxs_search.records.task import BaseModelRef
from loraxs_search.registry.card import model_card
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
OF_SPACES = SEARCH_SPACES.commands("loraxs-search")
MORE_ROWS = [
    command for command in OF_SPACES if {"v2.csv", "second", "large"} & {*command.args}
]  # of rows that are not here
LONG_ONES = [command for command in OF_SPACES if command.args[0] == "launch" and command not in MORE_ROWS]
SHORT_ONES = [command for command in OF_SPACES if command not in (*LONG_ONES, *MORE_ROWS)]


# ---- commands --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader who goes from top to bottom is."""
    return tmp_path_factory.mktemp("spaces")


@pytest.mark.slow
@pytest.mark.parametrize("command", [pytest.param(c, id=c.line.removeprefix("loraxs-search ")) for c in SHORT_ONES])
def test_a_command_of_the_page_of_spaces_runs(command, searched, folder):
    assert InProcess(searched.shell.home, folder).ok(*command.args)


def test_commands_of_long_searches_and_of_rows_that_are_not_here_are_understood():
    for verb, *rest in (command.args for command in (*LONG_ONES, *MORE_ROWS)):
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
def measured(tmp_path: Path, benchmark: str, *arguments: str) -> dict[str, Any]:
    found = tmp_path / "found.json"
    command = [sys.executable, str(SCRIPTS / f"{benchmark}.py"), *arguments, "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(found.read_text())


@pytest.mark.long(part="search")
def test_packs_are_timed_on_a_base_that_is_made(tmp_path, in_warm_home):
    found = measured(tmp_path, "bench_packing", "--bases", "tiny-decoder", "--rounds", "1", "--slots", "2")
    assert [row["slots"] for row in found["tiny-decoder"]["rows"]] == ["lone", 2]


def test_validation_rows_choose_without_bias_and_test_rows_decide_without_luck(tmp_path):
    """200 searches of equally good trials from a fixed seed: what took 8 trials' best by test rows is biased."""
    found = measured(tmp_path, "bench_promotion", "--quick")
    before, now = found["test rows choose"], found["validation rows choose"]
    assert before["8 candidates"]["bias"] > 1.0
    assert before["8 candidates"]["error"] > 0.05
    for size in ("1 candidates", "3 candidates", "8 candidates"):
        assert abs(now[size]["bias"]) < 2.5 * now[size]["bias_se"]
        assert now[size]["error"] <= 0.06
    assert now["20 searches"]["drift"] < before["20 searches"]["drift"]
    assert now["20 searches"]["false_promotions"] < before["20 searches"]["false_promotions"]
    assert max(values["error"] for values in found["equal adapters, few test rows"].values()) <= 0.12  # of 50 pairs


# ---- README.md -------------------------------------------------------------------------------------------------------
OURS = README.commands("loraxs-search")
# Whatever has an address runs on a cluster, in tests/integration/test_cluster.py; `ui` in
# tests/cli/test_cli_search.py; `launch` is the search that all these tests share.
ELSEWHERE = [command for command in OURS if "--address" in command.args or command.args[0] in ("ui", "serve")]
(WRITES,) = [command for command in OURS if command.args[:2] == ["launch", "movie_reviews_text"]]
FIRST = next(i for i, command in enumerate(OURS) if command.args[0] == "init")
OWN_ROWS = OURS[FIRST : FIRST + 4]  # from a file of rows to answers, in a home of its own
OTHERS = (*ELSEWHERE, *OWN_ROWS, WRITES)
LAUNCHES = [command for command in OURS if command.args[0] == "launch" and command not in OTHERS]
RUN = [command for command in OURS if command not in (*OTHERS, *LAUNCHES)]


def shape(line: str) -> str:
    """What stays of a line of output from one search to another: words, not numbers, digests and places."""
    line = re.sub(r"\S*/adapters/[0-9a-f]{64}", "FOLDER", line)
    line = re.sub(r"over (the constant answer|tfidf) \(", "over BASELINE (", line)  # the nearest one
    return re.sub(r"(\bp[=<])?-?\d[\d,.e-]*", "N", " ".join(line.split()))


# ---- commands --------------------------------------------------------------------------------------------------------
def test_the_readme_has_commands():
    verbs = "launch promote pull predict spaces check status resume ui history ls show doctor sync compare"
    assert {command.args[0] for command in OURS} == {*verbs.split(), "init", "report", "serve"}
    for args in (command.args for command in OURS):
        with GROUP.make_context("loraxs-search", [*args]) as context:
            verb, found, rest = GROUP.resolve_command(context, [*args])
            found.make_context(verb, rest, parent=context)
    assert [command.args[0] for command in ELSEWHERE] == ["ui", "doctor", "launch", "serve"]
    assert all(line.startswith("$ ") for block in README.blocks("console") for line in block.splitlines()[:1])


@pytest.mark.slow
def test_the_launch_on_the_first_screen_is_the_one_that_ran(searched):
    launch, of_a_copy = LAUNCHES
    copied = next(command.args[3] for command in OURS if command.args[:2] == ["spaces", "copy"])
    assert of_a_copy.args[1] == copied, "which search_spaces/README.md launches"
    assert launch.line == "loraxs-search launch movie_reviews --name reviews"
    assert set(launch.args) - {"launch"} <= set(searched.launched.args)
    printed = searched.launched.stdout + searched.launched.stderr
    reported = [line for line in launch.output if line and line != "..." and not re.match(r"\d{5} ", line)]
    heading, *rest = reported
    if "no score of features: it needs" in printed:  # it has ten seconds of a core, too few for slow ones
        rest = [line for line in rest if not line.startswith("features ")]
    assert heading.split()[:9] == searched.launched.stdout.splitlines()[0].split()[:9]
    assert {shape(line) for line in rest} <= {shape(line) for line in printed.splitlines()}


@pytest.mark.slow
@pytest.mark.long(part="search")
def test_a_file_of_rows_becomes_answers(fresh_home, tmp_path):
    """A newcomer's four commands, none of which fails; the search is sized down."""
    init, launch, promote, predict = OWN_ROWS
    texts = {"billing": "the invoice of {} euros is wrong, refund me", "bug": "the app crashed {} times with an error"}
    rows = [[text.format(i), label] for i in range(100) for label, text in texts.items()]
    with (tmp_path / init.args[1]).open("w", newline="") as file:
        csv.writer(file).writerows([["text", "team"], *rows])
    (tmp_path / predict.args[3]).write_text("please refund my invoice\nit crashed with an error again\n")
    shell = Shell(fresh_home, tmp_path)
    shell.ok(*init.args)
    small = [f"search.{it}" for it in ("trials=2", "max_steps=32", "report_every=16")]
    small += ["promotion.seeds=0", "promotion.require=constant"]  # TF-IDF answers such rows as well
    shell.ok(*launch.args, *(part for it in small for part in ("--set", it)))
    assert "promoted" in shell.ok(*promote.args)
    answers = list(csv.DictReader(shell.ok(*predict.args).splitlines()))
    assert [answer["prediction"] for answer in answers] == ["billing", "bug"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [pytest.param(c, id=c.line.removeprefix("loraxs-search ")) for c in RUN])
def test_a_command_runs_and_prints_what_the_readme_says(command, searched, readme_folder):
    done = InProcess(searched.shell.home, readme_folder).run(*command.args)
    if command.args == ["promote", "reviews"]:  # by now it is the champion; the first decision is the fixture's
        assert done.returncode == 0, done.stderr
        done = searched.promoted
    assert done.returncode == 0, done.stderr
    printed = {shape(line) for line in (done.stdout + done.stderr).splitlines()}
    shown = (line for line in command.output if line and line != "...")
    said = [re.sub(r"^(positive|negative)\t", "LABEL\t", line) for line in shown]
    labels = {re.sub(r"^(positive|negative) ", "LABEL ", line) for line in printed}
    assert {shape(line) for line in said} <= labels


@pytest.mark.slow
def test_the_server_answers_what_the_readme_asks_it(searched):
    """The command and the request as they are, but for a free port; a signal ends the server cleanly."""
    (command,) = [command for command in ELSEWHERE if command.args[0] == "serve"]
    (request,) = re.findall(r"^\$ (curl .*localhost:8000/classify.*)$", README.text, re.MULTILINE)
    shell, port = searched.shell, str(free_port())
    patient = request.replace("curl", "curl --retry 60 --retry-delay 1 --retry-connrefused").replace("8000", port)

    def ask_and_end():
        answers.append(subprocess.run(["bash", "-c", patient], capture_output=True, text=True, check=False).stdout)
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    answers, over = [], threading.Event()
    (asking := threading.Thread(target=ask_and_end)).start()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        shell.ok(*command.args, "--port", port)
    finally:
        over.set()
        asking.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    (expected,) = json.loads(shell.ok("predict", "movie-reviews", "a moving, funny film", "--json"))
    assert json.loads(answers[0])["data"][0]["label"] == expected["label"]


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory):
    """Where a reader who goes from top to bottom is, with rows of their own."""
    folder = tmp_path_factory.mktemp("readme")
    train = shipped_space_path("movie_reviews").parent / "data" / "movie_reviews" / "train.jsonl.gz"
    with gzip.open(train, "rt") as rows, (folder / "reviews.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "label"])
        writer.writerows([row["sentence"], row["label"]] for row in map(json.loads, itertools.islice(rows, 400)))
    return folder


def test_the_demo_runs_the_commands_of_the_first_screen():
    script = (ROOT / "tests" / "demo.sh").read_text()
    demo = re.findall(r"^run (\w+)", script, re.MULTILINE)
    assert demo == [command.args[0] for command in OURS[: len(demo)]]
    assert demo == ["launch", "promote", "predict"]


def test_verbs_named_in_the_text_exist_and_the_base_package_is_the_one_of_the_tests():
    for words in set(re.findall(r"`loraxs-search ([a-z]+)", README.text)):
        assert run([words, "--help"]) == 0
    assert [c.line for c in README.commands("pip")][1].split()[-1] in (ROOT / "Makefile").read_text()


# ---- python ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_python_runs(searched):
    with searched.shell.as_there():
        warnings.simplefilter("ignore")
        exec("".join(README.blocks("python")), space := {})
        classify, bank, texts, model = (space[name] for name in ("classify", "bank", "texts", "model"))
        for answer, of_bank in zip(classify(texts), bank.predict("movie-reviews", texts), strict=True):
            assert answer.label == of_bank.label
        exported = loraxs_search.pull("movie-reviews", form="lora", out="exported").absolute()
    assert type(model).__name__ == "PeftModelForSequenceClassification" and not model.training
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert [answer.label in ("negative", "positive") for answer in space["answers"]] == [True, True]
    assert (exported / "adapter_config.json").exists() and (exported / "1_Pooling").is_dir()
    with pytest.warns(UserWarning, match="`mean` pooling"):
        merged = model.merge_and_unload()
    assert type(merged).__name__ == "BertForSequenceClassification"


def test_the_functions_named_exist():
    for name in set(re.findall(r"loraxs_search\.(\w+)\(", README.text)):
        assert name in loraxs_search.__all__, name
    (listed,) = re.findall(r"([^.]*) are functions too\.", README.text)
    named = set(re.findall(r"`(\w+)`", listed))
    assert {"init", "launch"} <= named <= set(loraxs_search.__all__)


# ---- an adapter's card -----------------------------------------------------------------------------------------------
@pytest.fixture
def pulled(make_adapter, store_uri, tmp_path, warm_home, monkeypatch):
    """Promote an adapter with a number of labels and pull it: a folder with its card."""

    def pull(ref: BaseModelRef, num_labels: int) -> Path:
        with monkeypatch.context() as patch:
            patch.setenv("LORAXS_HOME", str(warm_home))  # where the base is unpacked
            folder = tmp_path / f"made-{num_labels}"
            made = make_adapter(folder, locate(ref), num_labels=num_labels, rank=2, target_modules=("query",))
        manifest = replace(verify(made), base_model=ref)
        (made / "README.md").write_text(model_card(manifest))
        seal(made, manifest)
        return loraxs_search.pull(promote(made, store_uri))

    return pull


@pytest.mark.slow
def test_both_of_its_codes_run_without_the_hub(pulled, tiny_base, store_uri, warm_home, monkeypatch):
    """The first wherever the base is; the second, of PEFT alone, where the base is a folder."""
    cards = [pulled(BaseModelRef(**QUICKSTART), 2), pulled(BaseModelRef(str(tiny_base)), 3)]
    blocks = [re.findall(r"```python\n(.*?)```", (card / "README.md").read_text(), flags=re.S) for card in cards]
    monkeypatch.setenv("LORAXS_HOME", str(warm_home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    for number, (card, code, num_labels) in enumerate(zip(cards, blocks, (2, 3), strict=True)):
        monkeypatch.chdir(card)
        exec(code[number], space := {})
        model, tokenizer = space["model"], space["tokenizer"]
        answer = model.config.id2label[int(model(**tokenizer("so so", return_tensors="pt")).logits.argmax())]
        assert model.config.id2label == {label: f"label {label}" for label in range(num_labels)}
        assert model.config.label2id == {f"label {label}": label for label in range(num_labels)}
        assert answer in model.config.label2id
