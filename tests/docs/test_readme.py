"""README.md cannot drift: its commands and its Python run."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
import re
import signal
import subprocess
import threading
import warnings

import pytest
import typer
from support.in_process import InProcess
from support.pages import README, ROOT
from support.ports import free_port
from support.shell import Shell

import loraxs_search
from loraxs_search.cli._main import app, run
from loraxs_search.home import shipped_space_path

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
    group = typer.main.get_command(app)
    for args in (command.args for command in OURS):
        with group.make_context("loraxs-search", [*args]) as context:
            verb, found, rest = group.resolve_command(context, [*args])
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
