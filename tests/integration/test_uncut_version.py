"""What commit 28e598c left on disk, before features were cut: read, promoted, searched on where nothing is missing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from support.in_process import InProcess
from support.recorded_homes import take_up
from support.shell import Shell

import loraxs_search
from loraxs_search.errors import StudyError
from loraxs_search.records import TrialState
from loraxs_search.registry import verify
from loraxs_search.search import resume
from loraxs_search.studies import StudyFolder
from loraxs_search.tracking.store import connect

UNCUT = Path(__file__).parents[1] / "fixtures" / "uncut"
RECORDED_AT = "/tmp/loraxs-uncut"  # see record_uncut.py there
FINISHED = ("drawn", "words", "unsent", "limits", "earlier", "gradient", "rotated")
REMEDIES = {"earlier": "leave `warm_start` out", "gradient": "use `basis: top`", "rotated": "use `method: lora-xs`"}


@pytest.fixture
def uncut_home(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    take_up(UNCUT, RECORDED_AT, fresh_home, monkeypatch)
    return fresh_home


def test_every_study_is_shown_reported_and_compared(uncut_home: Path, tmp_path: Path) -> None:
    shell = InProcess(uncut_home, tmp_path)
    for study in (*FINISHED, "minilm"):
        shown = json.loads(shell.ok("status", study, "--json"))
        assert len(shown["trials"]) == len(StudyFolder.open(study).journal().records), study
        shell.ok("status", study)
        shell.ok("report", study, "--output", str(tmp_path / f"{study}.html"))
        assert (tmp_path / f"{study}.html").stat().st_size > 10_000
        shell.ok("compare", study, "--by", "batch_size")


@pytest.mark.parametrize("study", FINISHED[2:])
def test_what_had_finished_is_promoted(uncut_home: Path, study: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        decision = loraxs_search.promote(study, force=True)
    assert decision.promoted, decision.reasons
    ignored = [key for key in ("promotion.max_latency", "promotion.notify") if key in caplog.text]
    assert ignored == (["promotion.max_latency", "promotion.notify"] if study == "limits" else [])


@pytest.mark.parametrize(("study", "remedy"), REMEDIES.items())
def test_a_search_that_needs_what_is_gone_does_not_go_on(uncut_home: Path, study: str, remedy: str) -> None:
    folder = StudyFolder.open(study)
    folder.set_candidates_aside()  # as where its driver was killed
    with pytest.raises(StudyError) as refused:
        resume(study)
    assert remedy in str(refused.value.hint)
    assert not folder.is_running()


def test_what_mlflow_has_not_got_is_sent(uncut_home: Path, agree: Callable[..., object]) -> None:
    folder = StudyFolder.open("unsent")
    events = folder.path / "tracking.jsonl"
    assert int((folder.path / "tracking.offset").read_text()) < events.stat().st_size
    assert len(resume("unsent").candidates) == 1
    assert int((folder.path / "tracking.offset").read_text()) == events.stat().st_size
    assert int((folder.path / "mlflow.offset").read_text()) == folder.journal_path.stat().st_size
    agree("unsent", 2)
    client = connect(folder.info.tracking_uri)
    experiment = client.get_experiment_by_name("uncut-unsent")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.long
def test_an_interrupted_search_on_a_real_base_goes_on_to_its_end(
    uncut_home: Path, agree: Callable[..., object]
) -> None:
    """With `basis: random`, which new spaces cannot have."""
    folder = StudyFolder.open("minilm")
    journal, before = folder.journal_path.read_bytes(), folder.journal().records
    assert {record.state for record in before.values()} >= {TrialState.RUNNING}
    Shell(uncut_home, uncut_home.parent).ok("resume", "minilm", timeout_s=500.0)
    agree("minilm", 3)
    assert folder.journal_path.read_bytes().startswith(journal)
    after = folder.journal().records
    assert {trial: after[trial].params for trial in before} == {trial: each.params for trial, each in before.items()}
    (best, *_) = folder.candidates() or ()
    manifest = verify(folder.adapter_path(best.trial_id))
    assert folder.info.task.pooling == manifest.task.pooling == "class", "what heads of this base read until then"
    assert manifest.hyperparameters.head_init == "random"


@pytest.mark.parametrize("study", ["drawn", "words"])
def test_a_promoted_adapter_answers_as_it_did(uncut_home: Path, study: str) -> None:
    recorded = json.loads((UNCUT / "predictions.json").read_text())[study]
    pulled = loraxs_search.pull(f"uncut-{study}", tracking_uri=StudyFolder.open(study).info.tracking_uri)
    answers = loraxs_search.predict(pulled, [row["text"] for row in recorded])
    assert [row.label for row in answers] == [row["label"] for row in recorded]
    assert [row.score for row in answers] == [
        score if (score := row["score"]) is None else pytest.approx(score, abs=1e-5) for row in recorded
    ]
