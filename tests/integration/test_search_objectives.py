"""A search for score and stored bytes together: its front, its candidates, and what a kill leaves of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.shell import start

from loraxs_search.pareto import dominates
from loraxs_search.records import CheckpointSelection, TrialRecord, TrialState
from loraxs_search.registry import choose
from loraxs_search.reports.leaderboard import front
from loraxs_search.search.driver.candidates import candidate_trials, completed_trials
from loraxs_search.studies import StudyFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# One trial at a time repeats bit for bit; the sampler learns from the eleventh trial on.
PLAN = (
    "search.objectives=[accuracy, stored_bytes]",
    "search.trials=16",
    "search.concurrent=1",
    "search.pack_size=1",
    "promotion={choose: smallest, tolerance: 0.2, candidates: 3, seeds: 0}",
)
SET = [part for item in PLAN for part in ("--set", item)]


def journal(study: str) -> dict[str, TrialRecord]:
    return StudyFolder.open(study).journal().records if StudyFolder.exists(study) else {}


def ended(study: str) -> int:
    return sum(record.state is not TrialState.RUNNING for record in journal(study).values())


def known(study: str) -> list[Any]:
    """Return what must not depend on whether the driver was killed."""
    return [
        (r.trial_id, r.params, r.state, r.reason, [(it.step, it.metrics["accuracy"]) for it in r.reports])
        for r in journal(study).values()
    ]


def client_of(folder: StudyFolder) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(folder.info.tracking_uri)


@pytest.mark.long
def test_a_killed_search_for_both_ends_as_an_undisturbed_one(
    in_search_home: Path, tiny_space: Path, agree: Callable[..., Any]
) -> None:
    with start(in_search_home, "launch", str(tiny_space), "--name", "undisturbed", *SET) as driver:
        _, talk = driver.communicate(timeout=400)
    assert driver.returncode == 0, talk
    with start(in_search_home, "launch", str(tiny_space), "--name", "killed", *SET) as driver:
        while ended("killed") < 12:
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.05)
        driver.kill()
    assert ended("killed") < 16
    with start(in_search_home, "resume", "killed", "--json") as again:
        out, talk = again.communicate(timeout=400)
    assert again.returncode == 0, talk
    assert known("killed") == known("undisturbed")
    agree("killed", 16)
    check_front(json.loads(out))


def check_front(shown: dict[str, Any]) -> None:
    """The front is in the result and in MLflow, and candidates are of it."""
    folder = StudyFolder.open("killed")
    assert folder.info.search.scheduler == "mo-asha"
    records = folder.journal().records
    assert any(record.reason.startswith("MO-ASHA stopped it") for record in records.values())
    best = front(records.values(), CheckpointSelection.of(folder.info.task, folder.info.search))
    points = {row["trial_id"]: (row["score"], row["stored_bytes"]) for row in shown["trials"]}
    complete = {name for name in points if records[name].state is TrialState.COMPLETE}
    assert {it.trial_id for it in best} == {
        name for name in complete if not any(dominates(points[other], points[name]) for other in complete)
    }
    assert [row["trial_id"] for row in shown["front"]] == [it.trial_id for it in best]
    assert {row["trial_id"] for row in shown["trials"] if row["on_front"]} == {it.trial_id for it in best}

    client = client_of(folder)
    experiment = client.get_experiment_by_name(folder.info.task.name)
    assert experiment is not None
    runs = [r for r in client.search_runs([experiment.experiment_id]) if r.data.tags["loraxs.study"] == "killed"]
    marked = {r.data.tags["trial_id"] for r in runs if "loraxs.on_front" in r.data.tags}
    assert marked == {it.trial_id for it in best}
    (search,) = [r for r in runs if r.data.tags["loraxs.kind"] == "search"]
    table = Path(client.download_artifacts(search.info.run_id, "front.csv")).read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["trial", *(it.trial_id for it in best)]

    candidates = folder.candidates() or []
    expected = candidate_trials(
        completed_trials(records.values(), folder.checkpoint_selection),
        folder.info.promotion,
        folder.info.task,
        folder.info.search,
    )
    assert {c.trial_id for c in candidates} == {record.trial_id for record in expected}
    finalist = choose(folder.info.promotion, folder.info.task, candidates).finalist
    assert finalist is not None
    assert [c.trial_id for c in candidates if c.test_metrics] == [finalist.trial_id]
