"""Spaces that share hosts load their base in the same way, whatever their number of outputs; names of their studies."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from loraxs_search.errors import LoraxsError, SearchInterruptedError, TaskDataError, UsageError
from loraxs_search.search.driver import launch
from loraxs_search.search.driver.launch import joined_errors, launch_together
from loraxs_search.search_space.load import load_space
from loraxs_search.studies.folder import StudyFolder, list_studies

DATA = "data: {data_files: {train: rows.jsonl}}"
CLASSES = f"kind: sequence-classification, columns: {{text: x, label: y}}, metrics: [accuracy], {DATA}"
TASKS = {
    "stars": f"{CLASSES}, labels: [a, b]",
    "topics": f"{CLASSES}, labels: [a, b, c]",
    "prices": f"kind: regression, columns: {{text: x, label: y}}, metrics: [mse], {DATA}",
    "sums": f'kind: text-generation, prompt: "{{x}}", answer: " {{y}}", metrics: [exact_match], {DATA}',
    "turns": f'kind: text-generation, prompt: "{{y}}", answer: " {{x}}", metrics: [exact_match], {DATA}',
}


@pytest.fixture
def spaces(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"x": "a b", "y": 1}\n')
    for name, task in TASKS.items():
        space = f"task: {{name: {name}, {task}}}\nbase_model: org/base\nparameters: {{rank: 4, learning_rate: 0.001}}\n"
        (tmp_path / f"{name}.yaml").write_text(space)
    return {name: str(tmp_path / f"{name}.yaml") for name in TASKS}


@pytest.mark.parametrize("names", [("stars", "sums"), ("turns", "sums", "prices")])
def test_a_head_and_none_are_refused_before_ray_starts(fresh_home, spaces, names, monkeypatch):
    monkeypatch.setattr(launch, "connected", lambda *_, **__: pytest.fail("Ray was started"))
    with pytest.raises(UsageError) as refused:
        launch_together([spaces[name] for name in names])
    for part in (names[0], names[-1], "`task.kind`", "AutoModelForCausalLM", "AutoModelForSequenceClassification"):
        assert part in refused.value.message
    assert refused.value.hint
    assert not list_studies()


@pytest.mark.parametrize("stem", ["my reviews", "größe", "_x", "-x", "v1+2", "映画", "a" * 90])
def test_a_file_of_any_name_gives_its_study_a_name(fresh_home, spaces, tmp_path, stem):
    path = Path(spaces["stars"]).rename(tmp_path / f"{stem}.yaml")
    info = launch.new_study(load_space(str(path)), None, "sqlite:///mlflow.db")
    StudyFolder.check_new(info.name)


def test_errors_of_other_processes_are_their_messages_and_not_rays_tracebacks():
    far = RayTaskError("info", "Traceback (most recent call last): ...", TaskDataError("No label.", hint="add one"))
    joined = joined_errors([far, LoraxsError("The disk is full.", hint="free some space")])
    assert isinstance(joined, LoraxsError)
    assert (joined.message, joined.hint) == ("No label.\nThe disk is full.", "add one\nfree some space")


def test_the_only_error_stays_as_it_is():
    error = SearchInterruptedError("stopped", hint="go on")
    assert joined_errors([error]) is error
