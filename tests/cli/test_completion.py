"""Completion as a shell asks for it: a process for each Tab, names from disk, and nothing heavy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from support.studies import study

from loraxs_search.cli import run
from loraxs_search.home import home
from loraxs_search.records import TrialState
from loraxs_search.shipped_spaces import shipped_spaces, shipped_tasks

HEAVY = ("torch", "ray", "mlflow", "transformers", "peft", "optuna", "datasets", "numpy")


@pytest.fixture
def offered(monkeypatch, capsys):
    """What is offered for a line whose last word is not finished, in this process."""

    def ask(line: str) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("_LORAXS_SEARCH_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", f"loraxs-search {line}")
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit) as ended:
            run([])
        said = capsys.readouterr()
        assert (ended.value.code, said.err) == (0, "")
        return said.out.split()

    return ask


@pytest.fixture
def reviews(store_uri):
    """A study of task `t` with a trial in each state."""
    folder = study("reviews", store_uri)
    journal = folder.journal()
    for number, state in enumerate((TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)):
        journal.trial_started(f"{number:05d}", {"rank": number})
        if state is not TrialState.RUNNING:
            journal.trial_ended(f"{number:05d}", state, "")
    return folder


@pytest.mark.parametrize(
    "verb", ["status", "promote", "resume", "sync", "compare", "report", "ui", "studies show", "studies rm"]
)
def test_studies_are_offered(offered, reviews, verb):
    study("other")
    assert offered(f"{verb} re") == ["reviews"]
    assert set(offered(f"{verb} ")) == {"reviews", "other"}


@pytest.mark.parametrize("verb", ["show", "history", "rollback", "rm", "pull"])
def test_tasks_of_studies_are_offered(offered, reviews, verb):
    assert offered(f"{verb} ") == ["t"]


def test_predict_is_offered_trials_too(offered, reviews):
    assert offered("predict ") == ["t", "reviews/"]
    assert offered("predict reviews/00001") == ["reviews/00001"]


def test_tasks_of_the_registry_are_offered_and_no_other_models(offered, store_uri):
    from mlflow import MlflowClient

    client = MlflowClient(store_uri, store_uri)
    client.create_registered_model("film-reviews", {"loraxs.kind": "adapter"})
    client.create_registered_model("factors-0123", {"loraxs.kind": "factors"})
    client.create_registered_model("of-others")
    assert offered("show ") == ["film-reviews"]
    assert offered("show --tracking-uri sqlite:///elsewhere.db ") == []


def test_tasks_pulled_from_a_server_are_offered(offered):
    names = home() / "adapters" / "names.json"
    names.parent.mkdir(parents=True)
    names.write_text(json.dumps({"http://server news@champion": {}, "http://server news:3": {}, "http://two x": {}}))
    assert offered("pull --tracking-uri http://server ") == ["news"]


def test_a_database_of_another_kind_offers_nothing(offered, fresh_home):
    fresh_home.mkdir()
    (fresh_home / "mlflow.db").write_text("no database")
    assert offered("show ") == []


def test_spaces_are_offered_with_files_and_folders(offered, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    (folder / "sub").mkdir(parents=True)
    for name in ("mine.yaml", "rows.csv", "sub/other.yml"):
        (folder / name).touch()
    monkeypatch.chdir(folder)
    for verb in ("check", "launch", "doctor"):
        assert offered(f"{verb} m") == [*(name for name in shipped_spaces() if name[0] == "m"), "mine.yaml"]
    assert offered("launch su") == ["sub/"]
    assert offered("launch sub/") == ["sub/other.yml"]
    assert offered("spaces show m") == [name for name in shipped_spaces() if name[0] == "m"]


def test_well_known_tasks_are_offered(offered):
    assert offered("tasks show ") == shipped_tasks()
    assert offered("tasks preview movie_reviews_t") == ["movie_reviews_text"]


def test_verbs_and_options_are_offered(offered):
    assert offered("la") == ["launch"]
    assert "--set" in offered("launch --se")


@pytest.mark.parametrize("line", ["lauch mo", "show --nothing ", "status nope mo"])
def test_a_line_that_is_wrong_is_completed_with_nothing_and_no_error(offered, line):
    assert offered(line) == []


def test_trials_are_read_without_their_reports(reviews):
    from loraxs_search.studies import trials_of

    with (reviews.path / "journal.jsonl").open("a") as journal:
        journal.write('{"event": "reported", "report": {}}\nno event\n{"event": "ended", "trial_id": "000')
    assert trials_of("reviews") == {
        "00000": TrialState.COMPLETE,
        "00001": TrialState.PRUNED,
        "00002": TrialState.RUNNING,
    }
    assert trials_of("nope") == {}


@pytest.mark.parametrize("line", ["launch m", "status ", "show ", "tasks show "])
def test_nothing_heavy_is_loaded(line, reviews):
    shell = {
        "_LORAXS_SEARCH_COMPLETE": "complete_bash",
        "COMP_WORDS": f"loraxs-search {line}",
        "COMP_CWORD": str(len(line.split(" "))),
    }
    program = f"""
import os, sys
os.environ |= {shell}
from loraxs_search.cli import run
try:
    run([])
except SystemExit:
    print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_word_is_completed_at_once(reviews):
    """CPU seconds of the process, which other processes lengthen little: 0.2 on an idle machine."""

    def once() -> float:
        variables = {
            "_LORAXS_SEARCH_COMPLETE": "complete_bash",
            "COMP_WORDS": "loraxs-search status ",
            "COMP_CWORD": "2",
        }
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "loraxs_search"], env=os.environ | variables, check=True, capture_output=True
        )
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(once() for _ in range(3)) < 2, "with torch it would be five"


# ---- installed in a shell --------------------------------------------------------------------------------------------
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_with_the_script_that_is_shown(reviews, tmp_path):
    """The shown script, in a real shell: what Tab would insert."""
    command = tmp_path / "loraxs-search"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m loraxs_search "$@"\n')
    command.chmod(0o755)
    script = f"""
eval "$({command} --show-completion bash)"
COMP_WORDS=({command} status re) COMP_CWORD=2
_loraxs_search_completion {command}
echo "${{COMPREPLY[@]}}"
"""
    variables = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, env=variables, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "reviews\n", "")


def test_help_has_a_short_form(say):
    for line in (("-h",), ("launch", "-h"), ("spaces", "-h"), ("spaces", "show", "-h")):
        assert say(*line).ok.startswith("Usage: loraxs-search")
    assert "--install-completion" in say("--help").ok
