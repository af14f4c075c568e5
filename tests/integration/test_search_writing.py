"""A search of a model that writes, from launch to predict: reports of the loss or of what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.in_process import InProcess
from support.toy_language import save_base, save_rows

from loraxs_search.records.trial import TrialState
from loraxs_search.search.driver.launch import launch
from loraxs_search.studies.folder import StudyFolder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]

SPACE = """
task:
  name: turned-words
  kind: text-generation
  data: {data_files: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  prompt: "say {words}"
  answer: " {turned}"
  metrics: [exact_match, token_f1]
  max_length: 16
  generation: {max_new_tokens: 4}
base_model: ./base
parameters:
  rank: 32
  target_modules: all-linear
  learning_rate: {log_uniform: [8.0e-3, 1.6e-2]}
  batch_size: 16
search: {trials: 3, max_steps: 120, report_every: 40, scheduler: none, precision: float32}
promotion: {candidates: 2, seeds: 0}
"""


@pytest.fixture
def shell(tmp_path, search_home, in_search_home):
    save_base(tmp_path / "base")
    save_rows(tmp_path)
    (tmp_path / "turned.yaml").write_text(SPACE)
    return InProcess(search_home, tmp_path)


def reports(study: str) -> list[dict[str, float]]:
    """The last report of each complete trial."""
    records = StudyFolder.open(study).journal().records.values()
    return [dict(record.reports[-1].metrics) for record in records if record.state is TrialState.COMPLETE]


def test_candidates_are_written_for_and_the_champion_writes(ray_here, shell, agree):
    assert "turned-words: text-generation; maximize exact_match" in shell.ok("check", "turned.yaml", "--data")
    launch(str(shell.folder / "turned.yaml"), name="turned")
    agree("turned", 3)
    assert len(reports("turned")) == 3
    assert all("loss" in metrics and "exact_match" not in metrics for metrics in reports("turned"))
    promoted = shell.ok("promote", "turned")
    assert "turned-words: promoted, trial" in promoted
    (champion,) = json.loads(shell.ok("show", "turned-words", "--json"))
    metrics = champion["candidate"]["validation_metrics"]
    assert set(metrics) == {"exact_match", "token_f1", "loss", "unparsed", "unended"}
    assert metrics["exact_match"] > 0.3
    assert champion["candidate"]["test_metrics"]["exact_match"] > 0.3
    answers = json.loads(shell.ok("predict", "turned-words", "w1 w2", "w7 w5", "w3 w3", "--json"))
    assert [answer["text"] for answer in answers] == ["w1 w2", "w7 w5", "w3 w3"]
    assert all(answer["label"] and answer["score"] is None for answer in answers)
    folder = Path(shell.ok("pull", "turned-words").strip())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["task"]["settings"]["generation"] == {"max_new_tokens": 4, "stop": []}
    card = (folder / "README.md").read_text()
    assert "transformers.AutoModelForCausalLM.from_pretrained" in card
    constant, *alone = StudyFolder.open("turned").baselines() or ()
    assert [constant.name, *(it.name for it in alone)] == ["constant", "zero-shot", "4-shot"]
    (tested,) = (it for it in alone if it.test_metrics)
    assert (
        f"| the untouched base, {tested.name}, asked in the same way | {tested.test_metrics['exact_match']:.4f}" in card
    )
    assert "| unended |" in card
    assert "While they trained, trials were compared by `loss`." in card
