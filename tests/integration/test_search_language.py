"""Searches of models that write, from launch to predict: of our own kind, and of one from another distribution."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import word_pairs
from support.in_process import InProcess
from support.plugins import write_distribution
from support.shell import Shell
from support.toy_language import save_base, save_rows

from loraxs_search.records.trial import TrialState
from loraxs_search.search.driver.launch import launch
from loraxs_search.studies.folder import StudyFolder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]

_DATA = "{data_files: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}"
TURNED = f"""
task:
  name: turned-words
  kind: text-generation
  data: {_DATA}
  prompt: "say {{words}}"
  answer: " {{turned}}"
  metrics: [exact_match, token_f1]
  max_length: 16
  generation: {{max_new_tokens: 4}}
base_model: ./base
parameters:
  rank: 32
  target_modules: all-linear
  learning_rate: {{log_uniform: [8.0e-3, 1.6e-2]}}
  batch_size: 16
search: {{trials: 3, max_steps: 120, report_every: 40, scheduler: none, precision: float32}}
promotion: {{candidates: 2, seeds: 0}}
"""
PAIRS = f"""
task:
  name: first-and-last
  kind: word-pairs
  data: {_DATA}
  ask: words
  answer: turned
  metrics: [exact_match]
  max_length: 16
  validation_rows: 12
base_model: ./base
parameters:
  rank: {{choice: [2, 4]}}
  target_modules: {{choice: [attention, all-linear]}}
  learning_rate: {{log_uniform: [1.0e-3, 1.0e-1]}}
  batch_size: 8
search:
  {{trials: 4, max_steps: 8, report_every: 2, checkpoint: best, precision: float32,
    scheduler: every-second, patience: 4}}
promotion: {{candidates: 2, seeds: 1}}
"""
EVERY_SECOND = '''
from loraxs_search.plugins import ParameterSpec
from loraxs_search.schedulers._base import Scheduler


class EverySecond(Scheduler):
    """Stops every second trial that reaches a step."""

    name = "every-second"
    parameters = {"patience": ParameterSpec("int", low=1, default=2)}

    def __init__(self, *given):
        super().__init__(*given)
        self._reached = []

    def decide(self, report, score):
        if report.step < self.params["patience"] or report.trial_id in self._reached:
            return None
        self._reached.append(report.trial_id)
        return None if len(self._reached) % 2 else f"it was the second one at step {report.step}"
'''


@pytest.fixture
def folder(tmp_path, in_search_home):
    save_base(tmp_path / "base")
    save_rows(tmp_path)
    for name, space in {"turned": TURNED, "pairs": PAIRS}.items():
        (tmp_path / f"{name}.yaml").write_text(space)
    return tmp_path


@pytest.fixture
def shell(folder, in_search_home, monkeypatch):
    """A command line with the package of another distribution."""
    kinds = {"loraxs_search.task_kinds": {"word-pairs": "WordPairs"}}
    write_distribution(folder / "site", "toy_kinds", Path(word_pairs.__file__).read_text(), kinds)
    schedulers = {"loraxs_search.schedulers": {"every-second": "EverySecond", "gone": "Gone"}}
    write_distribution(folder / "site", "toy_schedulers", EVERY_SECOND, schedulers)
    monkeypatch.setenv("PYTHONPATH", str(folder / "site"), prepend=os.pathsep)
    return Shell(in_search_home, folder)


def test_candidates_are_written_for_and_the_champion_writes(ray_here, in_search_home, folder, agree):
    shell = InProcess(in_search_home, folder)
    assert "turned-words: text-generation; maximize exact_match" in shell.ok("check", "turned.yaml", "--data")
    launch(str(folder / "turned.yaml"), name="turned")
    agree("turned", 3)
    study = StudyFolder.open("turned")
    reports = [record.reports[-1].metrics for record in study.journal().records.values()]
    assert len(reports) == 3
    assert all("loss" in metrics and "exact_match" not in metrics for metrics in reports)
    assert "turned-words: promoted, trial" in shell.ok("promote", "turned")
    (champion,) = json.loads(shell.ok("show", "turned-words", "--json"))
    metrics = champion["candidate"]["validation_metrics"]
    assert set(metrics) == {"exact_match", "token_f1", "loss", "unparsed", "unended"}
    assert metrics["exact_match"] > 0.3
    assert champion["candidate"]["test_metrics"]["exact_match"] > 0.3
    answers = json.loads(shell.ok("predict", "turned-words", "w1 w2", "w7 w5", "w3 w3", "--json"))
    assert [answer["text"] for answer in answers] == ["w1 w2", "w7 w5", "w3 w3"]
    assert all(answer["label"] and answer["score"] is None for answer in answers)
    pulled = Path(shell.ok("pull", "turned-words").strip())
    manifest = json.loads((pulled / "manifest.json").read_text())
    assert manifest["task"]["settings"]["generation"] == {"max_new_tokens": 4, "stop": []}
    constant, *alone = study.baselines() or ()
    assert [constant.name, *(it.name for it in alone)] == ["constant", "zero-shot", "4-shot"]
    (tested,) = (it for it in alone if it.test_metrics)
    card = (pulled / "README.md").read_text()
    score = f"{tested.test_metrics['exact_match']:.4f}"
    assert f"| the untouched base, {tested.name}, asked in the same way | {score}" in card
    for part in ("AutoModelForCausalLM.from_pretrained", "| unended |", "trials were compared by `loss`."):
        assert part in card


def test_a_search_without_candidates_asks_the_base_nothing_more(ray_here, folder):
    """It was asked for a part of the rows, to know how long answers take."""
    result = launch(str(folder / "turned.yaml"), name="late", overrides=("search.time_budget=1s",))
    study = StudyFolder.open("late")
    assert study.candidates() == [] == [r for r in result.trials if r.state is TrialState.COMPLETE]
    assert study.confirmed.answers(0, "validation") and not study.confirmed.answers(4, "validation")
    assert [it.name for it in study.baselines() or ()] == ["constant"]


@pytest.mark.long(part="search")
def test_a_kind_from_outside_is_searched_promoted_and_asked(shell, agree):
    checked = shell.ok("check", "pairs.yaml", "--data")
    assert "maximize exact_match, trials by loss" in checked
    assert "up to 4 candidates answer all 40 validation rows; the untouched base answers up to 200 of them" in checked
    shell.ok("launch", "pairs.yaml", "--name", "pairs")
    agree("pairs", 4)
    folder = StudyFolder.open("pairs")
    records = folder.journal().records.values()
    complete = [record for record in records if record.state is TrialState.COMPLETE]
    pruned = {(r.reason, r.reports[-1].step) for r in records if r.state is TrialState.PRUNED}
    assert (len(complete), pruned) == (2, {("it was the second one at step 4", 4)})
    assert all(r.reports[-1].size.head_parameters == 0 < r.reports[-1].size.r_parameters for r in complete)
    assert isinstance((folder.baselines() or ())[0].answer, str)
    assert all(set(report.metrics) == {"loss"} for record in records for report in record.reports)
    assert {"exact_match", "loss"} <= set((folder.candidates() or [])[0].validation_metrics)
    refused = " ".join(shell.ok("promote", "pairs").split())
    assert "there was no champion; " in refused
    assert "Try more steps" in refused
    shell.ok("promote", "pairs", "--force")
    answers = json.loads(shell.ok("predict", "first-and-last", "w1 w2", "w4 w5", "--json"))
    assert [answer["text"] for answer in answers] == ["w1 w2", "w4 w5"]
    assert all(len(answer["label"].split()) == 2 and answer["score"] is None for answer in answers)
    assert "pipeline_tag: text-generation" in Path(shell.ok("pull", "first-and-last").strip(), "README.md").read_text()


def test_its_keys_are_held_to_its_own_laws(shell):
    faults = {
        "task.answer=words": "task.answer: must be another column than `ask`, but got 'words'.",
        "task.metrics=[accuracy]": "It must fit word-pairs (one of: token_accuracy, exact_match, one_word",
        "search.patience=0": "search.patience: must be an integer of at least 1, but got 0.",
    }
    done = shell.run("check", "pairs.yaml", *(part for change in faults for part in ("--set", change)))
    assert done.returncode == 2
    assert [said for said in faults.values() if said not in " ".join(done.stderr.split())] == []
    done = shell.run("check", "pairs.yaml", "--set", "search.scheduler=gone")
    assert "search.scheduler: must be a scheduler that can be imported" in " ".join(done.stderr.split())
