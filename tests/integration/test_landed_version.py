"""What version 0.1.0 left on disk is taken up: its interrupted studies go on, its adapters load and answer the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import pyfunc
from support.in_process import InProcess
from support.recorded_homes import take_up

import loraxs_search
from loraxs_search.api import upgrade_registry
from loraxs_search.records import TrialState
from loraxs_search.registry.mlflow_model import Upgrade
from loraxs_search.studies import StudyFolder, read_reports

LANDED = Path(__file__).parents[1] / "fixtures" / "landed"
RECORDED_AT = "/tmp/loraxs-landed"  # see record.py there
STUDY, TASK = "interrupted", "landed-reviews"


@pytest.fixture
def landed_home(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    take_up(LANDED, RECORDED_AT, fresh_home, monkeypatch)
    return fresh_home


def recorded_adapter() -> Path:
    """Return the folder that `pull` laid down."""
    (manifest,) = LANDED.glob("home/adapters/*/manifest.json")
    return manifest.parent


def assert_answers_as_recorded(name: str | Path, uri: str | None = None) -> None:
    recorded = json.loads((LANDED / "predictions.json").read_text())
    predictions = loraxs_search.predict(name, [row["text"] for row in recorded], tracking_uri=uri)
    assert [(row.text, row.label) for row in predictions] == [(row["text"], row["label"]) for row in recorded]
    # Another processor sums float32 in another order; here that moves a probability by some 1e-7.
    assert [row.score for row in predictions] == pytest.approx([row["score"] for row in recorded], abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_interrupted_study_goes_on_to_its_end_and_can_be_promoted(
    landed_home: Path, agree: Callable[..., object]
) -> None:
    folder = StudyFolder.open(STUDY)
    journal, before = folder.path / "journal.jsonl", folder.journal().records
    (under_way,) = (r for r in before.values() if r.state is TrialState.RUNNING and r.reports)
    snapshot = folder.path / "snapshots" / f"{under_way.trial_id}.safetensors"
    recorded, state = journal.read_bytes(), snapshot.read_bytes()
    assert TrialState.COMPLETE in {record.state for record in before.values()}

    shell = InProcess(landed_home, landed_home.parent)
    events = [json.loads(line) for line in shell.ok("resume", STUDY, "--events").splitlines()]

    agree(STUDY, 6)
    assert len(events[-1]["result"]["trials"]) == 6
    followed = [json.loads(line) for line in shell.ok("status", STUDY, "--events").splitlines()]
    (begun,) = (number for number, event in enumerate(followed) if event["event"] == "search_started")  # 0.1.0 had none
    since = [event for event in events if event["study"] and "last records" not in event.get("text", "")]
    assert untimed(followed[begun:]) == untimed(since[since.index(followed[begun]) :])
    assert journal.read_bytes().startswith(recorded), "what was recorded stands, bit for bit"
    after = folder.journal().records
    for trial_id, record in before.items():
        assert after[trial_id].params == record.params
        assert after[trial_id].reports[: len(record.reports)] == record.reports
    assert TrialState.FAIL not in {record.state for record in after.values()}
    assert after[under_way.trial_id].reports[-1].step > under_way.reports[-1].step
    assert snapshot.read_bytes() != state
    reports = read_reports(snapshot.read_bytes())
    assert reports[: len(under_way.reports)] == under_way.reports, "its state was taken up, seconds and all"
    assert folder.candidates()

    decision = loraxs_search.promote(STUDY, force=True)  # on another machine scores may differ, and the rule refuse
    assert (decision.promoted, decision.version, decision.champion) == (True, 2, "champion/00001"), decision
    assert [made.number for made in decision.comparisons] == [2], "the landed version's look at these rows counts"


def untimed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A phase has its own moment in the journal, and how far trials are between reports is not kept."""
    kept = [event for event in events if event["event"] != "trials_advanced"]
    return [{**event, "at": 0.0} if event["event"] == "phase" else event for event in kept]


def test_an_adapter_that_was_pulled_answers_as_it_did(landed_home: Path) -> None:
    assert_answers_as_recorded(landed_home / "adapters" / recorded_adapter().name)


def test_an_adapter_that_was_promoted_is_pulled_and_answers_as_it_did(
    landed_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{landed_home / 'mlflow.db'}"
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "another-home"))
    pulled = loraxs_search.pull(TASK, tracking_uri=uri)
    files = {path.name: path.read_bytes() for path in pulled.iterdir()}
    assert files == {path.name: path.read_bytes() for path in recorded_adapter().iterdir()}
    assert_answers_as_recorded(TASK, uri)


def test_versions_are_upgraded_for_mlflow_and_pulled_as_before(
    landed_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{landed_home / 'mlflow.db'}"
    outcomes = [upgrade_registry(tracking_uri=uri) for _ in range(2)]
    assert outcomes == [[Upgrade(f"{TASK}:1", "upgraded")], [Upgrade(f"{TASK}:1", "has one")]]
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "another-home"))
    pulled = loraxs_search.pull(TASK, tracking_uri=uri)
    assert pulled.name == recorded_adapter().name
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    recorded = json.loads((LANDED / "predictions.json").read_text())
    answers = pyfunc.load_model(f"models:/{TASK}@champion").predict(
        pd.DataFrame({"sentence": [it["text"] for it in recorded]})
    )
    assert answers["label"].tolist() == [it["label"] for it in recorded]
    assert answers["score"].tolist() == pytest.approx([it["score"] for it in recorded], abs=1e-5)
