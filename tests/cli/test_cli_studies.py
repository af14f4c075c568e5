"""`status`, `studies`, `gc` and the verbs that steer: studies that run, have ended, wait, or are another machine's."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest
from support.studies import ScriptedDriver, Tried, age, searched, study
from support.toy_language import writing
from support.toys import measured as report

from loraxs_search import watch
from loraxs_search.cli._out import shown_bytes
from loraxs_search.cli.launch import show_results
from loraxs_search.home import write_atomic
from loraxs_search.log.events import Answered, Commanded, TrialEnded, TrialReported, TrialStarted
from loraxs_search.records.search import Baseline, Command
from loraxs_search.records.trial import TrialState
from loraxs_search.search.driver.result import SearchResult
from loraxs_search.studies import lease
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.studies.storage import Storage

BASELINES = (
    Baseline("constant", {"accuracy": 0.5}, {"accuracy": 0.52}, answer=1, seconds=0.04),
    Baseline("tfidf", {"accuracy": 0.75}, {"accuracy": 0.7412}, seconds=1.26),
    Baseline("features", seconds=10.0, failed="it needs 80 s of a core or more, and has 10"),
)
CELLS = [
    ["constant", "BASELINE", "-", "0.5000", "0.5200", "-", "-", "0.0", "-"],
    ["tfidf", "BASELINE", "-", "0.7500", "0.7412", "-", "-", "1.3", "-"],
    ["features", "BASELINE", "-", "-", "-", "-", "-", "10.0", "-"],
]


# ---- status ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def states(say):
    """Returns what is said of the study, and of its trial."""

    def said() -> tuple[str, str]:
        printed = json.loads(say("status", "mine", "--json").ok)
        listed = {line.split()[0]: line.split()[2] for line in say("status").ok.splitlines()[1:]}
        assert printed["state"] == listed["mine"] or printed["state"] == "elsewhere"
        return printed["state"], printed["trials"][0]["state"]

    return said


def test_a_trial_of_a_study_that_nobody_works_on_does_not_run(driver, say, states):
    with driver.folder.lock():
        assert states() == ("running", "RUNNING")
    assert states() == ("interrupted", "INTERRUPTED")
    assert say("status", "mine").ok.splitlines()[1].split()[:2] == ["00000", "INTERRUPTED"]
    assert say("status", "mine", "--watch").ok.splitlines()[1].split()[:2] == ["00000", "INTERRUPTED"]
    assert [*watch("mine")][-1].state == "interrupted"
    driver.end("00000", TrialState.COMPLETE)
    driver.finish()
    assert states() == ("finished", "COMPLETE")
    assert say("status", "--watch").is_error(2, "`--watch` must be given with a study")


def test_a_study_that_another_machine_has_taken_over_is_elsewhere(tmp_path, say, states, monkeypatch):
    storage = tmp_path / "shared"
    storage.mkdir()
    driver = ScriptedDriver(study("mine", storage=str(storage)))
    driver.begin()
    driver.train("00000", 20)
    assert states() == ("interrupted", "INTERRUPTED")
    held = lease.Lease(Storage(str(storage)), "mine")
    held.take()
    assert states() == ("interrupted", "INTERRUPTED"), "this machine's own lock says more than its lease"
    monkeypatch.setattr(lease.platform, "node", lambda: "another")
    assert states() == ("elsewhere", "RUNNING")
    host = os.uname().nodename
    assert f"mine runs on {host}, or was killed there" in say("status", "mine").err
    assert f"study 'mine' runs on {host}, which takes it from {storage}" in say("finish", "mine").err
    assert not list(driver.folder.inbox.waiting()), "nobody would read it"
    held.release()
    assert states() == ("interrupted", "INTERRUPTED")
    shutil.rmtree(storage)
    assert states() == ("interrupted", "INTERRUPTED"), "a storage that is away changes nothing"


def test_a_search_that_is_to_finish_says_what_is_left(driver, say):
    driver.journal.append(Commanded(command=Command("c", "finish", sent_by="ann")))
    driver.journal.append(Answered(command_id="c", state="done", text="so"))
    with driver.folder.lock():
        assert json.loads(say("status", "mine", "--json").ok)["finishing"] == "finished by a person (ann)"
        said = say("status", "mine").err
    assert "mine: running, 0/1 trial ended" in said, "of 16 that were planned"
    assert "finishing: finished by a person (ann); no new trials, 1 still running" in said


def tried(folder: StudyFolder, metrics: dict[str, float]) -> StudyFolder:
    """Have one trial end."""
    journal = folder.journal()
    journal.append(TrialStarted(trial_id="00000", params={"rank": 4}))
    journal.append(TrialReported(report=report("00000", 8, metrics)))
    journal.append(TrialEnded(trial_id="00000", state=TrialState.COMPLETE, reason="ran all steps"))
    return folder


def shown(folder: StudyFolder, capsys: Any, as_json: bool) -> Any:
    """Return what is printed at the end of a search."""
    show_results([SearchResult("s", tuple(folder.journal().records.values()), (), 1.0)], as_json=as_json)
    return capsys.readouterr()


def test_baselines_stand_below_the_trials_with_test_scores_once_the_search_has_chosen(say, store_uri, capsys):
    folder = tried(study("s", store_uri), {"accuracy": 0.6})
    folder.write_baselines(BASELINES)
    said = say("status", "s")
    assert f"no score of features: {BASELINES[2].failed}\n" in said.err
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[1][:2] == ["00000", "COMPLETE"]
    assert lines[2:] == [[*row[:4], "-", *row[5:]] for row in CELLS]
    told = json.loads(say("status", "s", "--json").out)
    assert len(told["trials"]) == 1
    assert [y["test_metrics"] for y in told["baselines"]] == [{}, {}, {}]
    folder.write_candidates([])
    for printed in (say("status", "s").out, shown(folder, capsys, as_json=False).out):
        assert [line.split() for line in printed.splitlines()][2:] == CELLS
    for printed in (say("status", "s", "--json").out, shown(folder, capsys, as_json=True).out):
        constant, tfidf, features = json.loads(printed)["baselines"]
        assert (constant["answer"], tfidf["test_metrics"]) == (1, {"accuracy": 0.7412})
        assert features["failed"] == BASELINES[2].failed


def test_cut_answers_are_warned_of_in_status_and_at_the_end_of_a_search(say, store_uri, capsys):
    warning = "trial 00000: 50% of the answers were cut at max_new_tokens=6: raise `generation.max_new_tokens`, or"
    scores = {"exact_match": 0.1, "unparsed": 0.0, "unended": 0.5, "loss": 1.0}
    folder = tried(study("s", store_uri, task=writing()), scores)
    said = say("status", "s")
    assert f"warning: {warning}" in " ".join(said.err.split())
    assert "unended" in said.out
    assert json.loads(say("status", "s", "--json").out)["warnings"][0].startswith(warning)
    assert f"warning: {warning}" in shown(folder, capsys, as_json=True).err


# ---- steering --------------------------------------------------------------------------------------------------------
SPACE = """
task: sst2
base_model: org/base
parameters:
  rank: {choice: [4, 8, 16]}
  learning_rate: {log_uniform: [1.0e-3, 1.0e-1]}
"""
QUEUED: list[tuple[list[str], dict[str, object]]] = [
    (["stop", "s", "1", "--now"], {}),
    (["add", "s", "--set", "rank=16", "--set", "learning_rate=1e-3"], {"rank": 16, "learning_rate": 0.001}),
    (["add", "s", "--from", "0", "--set", "learning_rate=2e-3"], {"learning_rate": 0.002}),
    (["extend", "s", "--trials", "12", "--time", "1h"], {}),
]
REFUSED = [
    (["stop", "s", "7"], 1, ("`trial` must be one of study 's': 00001, 00000, but got '00007'", "status s")),
    (["add", "s", "--set", "rank=5"], 1, ("`rank` must be as the space has it, one of 4, 8, 16, but got 5",)),
    (["extend", "s", "--trials", "x"], 2, ("`--trials` must be a whole number, but got 'x'.",)),
    (["finish", "nothing"], 1, ("but there is no 'nothing'", "ssh MACHINE")),
]


def test_a_command_is_queued_and_named_or_refused_with_the_reason(say, fresh_home):
    params = {"rank": 4, "learning_rate": 0.01}
    trials = [Tried(params, 0.9, state=state) for state in (TrialState.PRUNED, TrialState.RUNNING)]
    folder = searched("s", trials, space=SPACE, finished=False)
    for line, code, parts in REFUSED:
        assert say(*line).is_error(code, *parts)
    assert not list(folder.inbox.waiting())
    for number, (line, params) in enumerate(QUEUED):
        said = say(*line)
        assert (said.ok, "s: queued: nobody runs study 's' on this machine" in said.err) == ("", True)
        assert "`loraxs-search resume s` carries it out first" in said.err
        commands = list(folder.inbox.waiting())
        assert (len(commands), commands[-1].verb, dict(commands[-1].params)) == (number + 1, line[0], params)
        assert f"not answered yet: {line[0]} " in say("status", "s").err
    verbs = [line[0] for line, _ in QUEUED]
    assert [it["verb"] for it in json.loads(say("status", "s", "--json").ok)["commands"]] == verbs
    assert json.loads(say("stop", "s", "1", "--json").ok)["state"] == "queued"
    (folder.path / "space.yaml").write_text("task: [")
    assert say("add", "s", "--set", "rank=4").is_error(1, "must be valid YAML")
    (folder.path / "journal.jsonl").write_text("{\n")
    assert say("extend", "s", "--trials", "1").is_error(1, "Every line of a journal must be an event")


# ---- what goes -------------------------------------------------------------------------------------------------------
def test_what_stays_of_a_study_that_cannot_be_read_is_said(say, store_uri):
    path = searched("reviews", [Tried({"rank": 2}, 0.8)]).path
    assert say("sync").ok
    assert say("studies", "rm", "reviews", "revews").is_error(1, "but got 'revews'")
    assert path.is_dir(), "of several none goes where one is refused"
    (path / "study.json").unlink()
    listed = say("status")
    assert listed.ok.splitlines()[1].split()[:3] == ["reviews", "-", "incomplete"]
    assert "`loraxs-search studies rm reviews --force`" in listed.err
    assert say("studies", "rm", "reviews").is_error(1, "has none.", "--force")
    assert say("studies", "rm", "reviews", "--force", "--dry-run").ok.startswith("reviews: would be removed, ")
    removed = say("studies", "rm", "reviews", "--force")
    assert removed.ok.startswith("reviews: removed, ")
    assert "its runs in MLflow and a copy in a storage stay" in removed.err


def test_gc_says_what_goes_what_stays_and_why(say, store_uri, fresh_home):
    tokens = fresh_home / "datasets" / "tokens"
    for name in "ab":
        write_atomic(tokens / f"{name}.safetensors", "x" * 10_000)
    age(tokens / "a.safetensors")
    planned = say("gc", "--dry-run")
    (row,) = (line for line in planned.ok.splitlines() if line.startswith("rows and tokens"))
    assert row.split()[3:7] == ["1", "12.3", "KB", "1"]
    assert "would free 12.3 KB" in planned.err
    assert "kept: 1 of rows and tokens, used not long ago" in planned.err
    assert (tokens / "a.safetensors").exists()
    done = json.loads(say("gc", "--json").ok)
    assert [item["path"] for item in done if not item["kept"]] == [str(tokens / "a.safetensors")]
    assert "freed 12.3 KB" not in say("gc").err
    assert say("gc", "--older-than", "0d").ok
    assert not (tokens / "b.safetensors").exists()
    assert say("gc", "--older-than", "soon").is_error(2, "must be a number with a unit, but got 'soon'")
    assert [shown_bytes(size) for size in (999, 1_234_567, 999_600)] == ["999 B", "1.23 MB", "1 MB"]


def test_where_a_home_was_moved_what_needs_the_store_says_how_to_lead_to_it(
    say, store_uri, fresh_home, tmp_path, monkeypatch
):
    """Its studies still name the MLflow database by the old path, and nobody makes an empty one."""
    searched("done", [Tried({"rank": 4}, 0.9)])
    assert "complete" in say("sync").ok
    moved = fresh_home.rename(tmp_path / "larger-disk")
    monkeypatch.setenv("LORAXS_HOME", str(moved))
    law = f"The store that study 'done' records in must be there, but {fresh_home / 'mlflow.db'} is not"
    for verb in (("resume", "done"), ("studies", "rm", "done", "--runs"), ("ui", "done", "--no-open")):
        assert say(*verb).is_error(1, law, f"ln -s {moved} {fresh_home}")
        assert not fresh_home.exists()
        assert (moved / "studies" / "done").is_dir()
    said = say("sync", "--json")
    assert said.code == 1
    assert '"waiting"' in said.out and f"ln -s {moved} {fresh_home}" in said.out
    assert not fresh_home.exists()
    fresh_home.symlink_to(moved)
    assert "complete" in say("sync").ok
