"""Spaces that share hosts load their base in the same way, whatever their number of outputs; names of their studies."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from loraxs_search.errors import LoraxsError, TaskDataError, UsageError
from loraxs_search.search.driver import launch
from loraxs_search.search.driver.launch import launch_together
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


def test_a_head_and_none_are_refused_before_ray_starts(fresh_home, spaces, monkeypatch):
    names = ("turns", "sums", "prices")
    monkeypatch.setattr(launch, "connected", lambda *_, **__: pytest.fail("Ray was started"))
    with pytest.raises(UsageError) as refused:
        launch_together([spaces[name] for name in names])
    assert all(part in refused.value.message for part in (names[0], names[-1], "`task.kind`"))
    assert not list_studies()


def test_spaces_that_differ_in_base_precision_or_pack_size_are_refused(fresh_home, spaces):
    path = Path(spaces["topics"])
    text = path.read_text()
    for key, after in (
        ("`base_model`", "org/other"),
        ("`search.precision`", "org/base\nsearch: {precision: bfloat16}"),
        ("`search.pack_size`", "org/base\nsearch: {pack_size: 2}"),
    ):
        path.write_text(text.replace("org/base", after))
        with pytest.raises(UsageError, match=key):
            launch_together([spaces["stars"], spaces["topics"]])
    assert not list_studies()


def test_a_file_of_any_name_gives_its_study_a_name(fresh_home, spaces):
    path = Path(spaces["stars"])
    for stem in ("my reviews+", "_größe", "映画", "a" * 90):
        path = path.rename(path.with_stem(stem))
        StudyFolder.check_new(launch.new_study(load_space(str(path)), None, "sqlite:///mlflow.db").name)


def test_errors_of_other_processes_are_their_messages_and_not_rays_tracebacks(fresh_home, spaces, monkeypatch):
    far = RayTaskError("info", "Traceback (most recent call last): ...", TaskDataError("No label.", hint="add one"))
    errors = {"stars": far, "topics": LoraxsError("The disk is full.", hint="free some space")}

    def search(info: Any, *_: object) -> None:
        if (error := errors.get(info.task.name)) is not None:
            raise error

    monkeypatch.setattr(launch, "_ready", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(launch, "search_study", search)
    with pytest.raises(LoraxsError) as joined:
        launch_together([spaces["stars"], spaces["topics"]])
    assert (joined.value.message, joined.value.hint) == ("No label.\nThe disk is full.", "add one\nfree some space")
    del errors["stars"]
    with pytest.raises(LoraxsError) as alone:
        launch_together([spaces["stars"], spaces["topics"]])
    assert alone.value is errors["topics"], "the only error stays as it is"
