"""Searches of tasks with a head and without one, on hosts that they share at once and one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.toy_language import WORDS, save_base, save_rows

from loraxs_search.records import TrialState
from loraxs_search.search import SearchResult, launch, launch_together

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]

TASKS = {
    "turned": 'kind: text-generation, prompt: "say {words}", answer: " {turned}", metrics: [exact_match],'
    " generation: {max_new_tokens: 4}, max_length: 32",
    "halves": "kind: sequence-classification, columns: {text: words, label: half}, labels: [lower, upper],"
    " max_length: 32, metrics: [accuracy]",
}
SPACE = """
task: {name: NAME, data: {data_files: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}, TASK}
base_model: ./base
parameters:
  rank: 8
  target_modules: all-linear
  learning_rate: {log_uniform: [4.0e-3, 1.6e-2]}
  batch_size: 8
search: {trials: 2, max_steps: 8, report_every: 4, scheduler: none, precision: float32, pack_size: 4, keep_hosts: 60s}
promotion: {candidates: 1, seeds: 0}
"""


@pytest.fixture
def spaces(tmp_path: Path) -> list[str]:
    """Two spaces on one base: one writes two words the other way round, one says which half the first word is of."""
    save_base(tmp_path / "base")
    save_rows(tmp_path)
    for path in tmp_path.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        halves = [int(WORDS.index(row["words"].split()[0]) >= len(WORDS) / 2) for row in rows]
        both = [{**row, "half": half} for row, half in zip(rows, halves, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in both))
    for name, task in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(SPACE.replace("NAME", name).replace("TASK", task))
    return [str(tmp_path / f"{name}.yaml") for name in TASKS]


def losses(result: SearchResult) -> dict[str, list[float]]:
    assert all(trial.state is TrialState.COMPLETE for trial in result.trials)
    return {trial.trial_id: [report.metrics["loss"] for report in trial.reports] for trial in result.trials}


def directories() -> set[str]:
    """Return the names of the directories of hosts that stay; other tests have theirs."""
    import ray

    names = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    return {name for name in names if name.startswith("directory-")}


def hosts_of(name: str) -> list[Any]:
    import ray

    from loraxs_search.search.cluster.connection import NAMESPACE

    actors_of: list[Any] = ray.get(ray.get_actor(name, NAMESPACE).hosts.remote())
    return actors_of


def test_tasks_with_and_without_a_head_share_hosts_at_once_and_in_turn(
    ray_here: None, in_search_home: Path, spaces: list[str], agree: Callable[..., object]
) -> None:
    before = directories()
    together = launch_together(spaces)
    (directory,) = directories() - before
    first = hosts_of(directory)
    assert len(first) == 1
    for space, at_once in zip(spaces, together, strict=True):
        agree(at_once.study, 2)
        assert [bool(candidate.test_metrics) for candidate in at_once.candidates] == [True]
        in_turn = launch(space)  # on the host that both have used
        agree(in_turn.study, 2)
        assert hosts_of(directory) == first
        for trial_id, expected in losses(in_turn).items():
            assert losses(at_once)[trial_id] == pytest.approx(expected, rel=1e-4)
        (one,), (other,) = at_once.candidates, in_turn.candidates
        assert one.test_metrics.keys() == other.test_metrics.keys()
        assert one.validation_metrics["loss"] == pytest.approx(other.validation_metrics["loss"], rel=1e-4)
