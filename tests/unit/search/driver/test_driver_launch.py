"""What is decided before hosts begin: names, what trials start from, which spaces run together; `check` in Python."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from support.studies import TASK
from support.toys import HYPERPARAMETERS

import loraxs_search
from loraxs_search.errors import LoraxsError, TaskDataError, UsageError
from loraxs_search.records.codec import to_json
from loraxs_search.records.task import Task
from loraxs_search.search.driver import launch
from loraxs_search.search.driver.launch import launch_together
from loraxs_search.search_space.load import load_space, parse_space
from loraxs_search.studies.folder import StudyFolder, list_studies


def test_check_is_what_the_command_line_prints_and_reports_every_fault(fresh_home, tiny_space, say):
    checked = loraxs_search.check(str(tiny_space), data=True, overrides={"search.trials": 3})
    printed = say("check", str(tiny_space), "--data", "--set", "search.trials=3", "--json").ok
    assert json.loads(printed) == json.loads(to_json(checked))
    assert set(checked.rows or {}) == {"train", "validation", "test"}
    assert loraxs_search.check(str(tiny_space)).rows is None
    with pytest.raises(UsageError, match=r"search\.trials[\s\S]*search\.max_steps"):
        loraxs_search.check(str(tiny_space), overrides={"search.trials": 0, "search.max_steps": 0})


# ---- what trials start from ------------------------------------------------------------------------------------------
@pytest.fixture
def resolved(monkeypatch):
    """Returns what trials start from where the registry has an adapter of a task."""
    params = "method: {choice: [lora-xs, lora]}, parameters: {rank: 4, learning_rate: 0.001}"
    text = f"{{task: sst2, base_model: a/b, start_from: t, {params}}}"
    space = parse_space(text, source="s.yaml", folder=Path())
    adapter = SimpleNamespace(task="t", version=1, digest="d" * 64)
    monkeypatch.setattr(launch, "Registry", lambda uri: SimpleNamespace(resolve=lambda name: adapter))
    monkeypatch.setattr(launch, "pull", lambda name, uri: Path())

    def start(theirs: Task, method: str = "lora-xs", **ours: Any) -> Any:
        hyper = replace(HYPERPARAMETERS, method=method)
        manifest = SimpleNamespace(hyperparameters=hyper, base_digest="b" * 64, task=theirs)
        monkeypatch.setattr(launch, "verify", lambda path: manifest)
        return launch.new_study(replace(space, task=replace(theirs, **ours)), None, "sqlite:///x.db").start_from

    return start


def test_trials_start_from_an_adapter_of_a_fitting_method_and_its_head_where_it_answers_the_same(resolved):
    for method, law in (("lora", "trials can start from"), ("vera", "a method of the space")):
        with pytest.raises(UsageError, match=law):
            resolved(TASK, method)
    numbers = replace(TASK, kind="regression", labels=(), variant="de")  # of which labels do not tell
    assert resolved(numbers, variant="fr").with_head
    assert not resolved(numbers, name="another").with_head
    classes = replace(TASK, labels=("a", "b"))
    assert resolved(classes, name="another").with_head, "its labels are the same"
    assert not resolved(classes, labels=("a", "c")).with_head


# ---- several spaces --------------------------------------------------------------------------------------------------
DATA = "columns: {text: x, label: y}, data: {data_files: {train: rows.jsonl}}"
TASKS = {
    "stars": f"kind: sequence-classification, metrics: [accuracy], {DATA}, labels: [a, b]",
    "topics": f"kind: sequence-classification, metrics: [accuracy], {DATA}, labels: [a, b, c]",
    "prices": f"kind: regression, metrics: [mse], {DATA}",
    "sums": 'kind: text-generation, prompt: "{x}", answer: " {y}", metrics: [exact_match], '
    "data: {data_files: {train: rows.jsonl}}",
}


@pytest.fixture
def spaces(fresh_home, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"x": "a b", "y": 1}\n')
    for name, task in TASKS.items():
        space = f"task: {{name: {name}, {task}}}\nbase_model: org/base\nparameters: {{rank: 4, learning_rate: 0.001}}\n"
        (tmp_path / f"{name}.yaml").write_text(space)
    return {name: str(tmp_path / f"{name}.yaml") for name in TASKS}


def test_spaces_that_differ_in_how_they_load_the_base_are_refused_before_ray_starts(spaces, monkeypatch):
    monkeypatch.setattr(launch, "connected", lambda *_, **__: pytest.fail("Ray was started"))
    with pytest.raises(UsageError, match=r"`task\.kind`.* but sums .* and prices "):
        launch_together([spaces["sums"], spaces["prices"]])
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


def test_a_file_of_any_name_gives_its_study_a_name(spaces):
    path = Path(spaces["stars"])
    for stem in ("my reviews+", "_größe", "映画", "a" * 90):
        path = path.rename(path.with_stem(stem))
        StudyFolder.check_new(launch.new_study(load_space(str(path)), None, "sqlite:///mlflow.db").name)


def test_errors_of_other_processes_are_their_messages_and_not_rays_tracebacks(spaces, monkeypatch):
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
