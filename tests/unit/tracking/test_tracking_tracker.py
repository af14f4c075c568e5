from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from loraxs_search.log.events import TrialStarted
from loraxs_search.log.study_log import StudyLog
from loraxs_search.records.search import Baseline, SearchPlan
from loraxs_search.records.trial import TrialState
from loraxs_search.tracking.store import connect
from loraxs_search.tracking.tracker import Tracker


def test_a_search_is_a_run_with_a_child_per_trial(open_tracker, record, look, store_uri, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123456789abcdef0123456789abcdef")  # another's, which changes nothing
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    tracker = open_tracker()
    record(tracker)
    assert tracker.flush()
    assert not (tmp_path / "other.db").exists()
    assert not list(Path.cwd().iterdir())
    seen = look()

    (parent,) = seen.parents
    params, tags = parent.data.params, parent.data.tags
    assert (params["task"], params["search.trials"], params["search.checkpoint"]) == ("toy", "3", "last")
    assert (tags["version.mlflow"], tags["version.torch"]) == (version("mlflow"), version("torch"))
    assert tags["hardware.gpus"] == "H100"
    assert (tags["loraxs.best_trial"], parent.data.metrics["best_accuracy"]) == ("t0", 0.58)
    assert parent.info.status == "FINISHED"
    space = connect(store_uri).download_artifacts(parent.info.run_id, "space.yaml")
    assert Path(space).read_text() == "task:\n  name: toy\n"

    assert set(seen.children) == {"t0", "t1", "t2"}
    for trial_id, child in seen.children.items():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["loraxs.study_id"] == tags["loraxs.study_id"]
        assert child.info.run_name == f"{trial_id} r4 lr 1e-3"
    status = {trial_id: (run.info.status, run.data.tags["loraxs.state"]) for trial_id, run in seen.children.items()}
    assert status == {"t0": ("FINISHED", "COMPLETE"), "t1": ("FINISHED", "PRUNED"), "t2": ("FAILED", "FAIL")}
    child, points = seen.children["t1"].data, seen.points["t1"]
    assert [child.params[name] for name in ("rank", "lr_schedule", "num_target_modules")] == ["4", "linear", "1"]
    assert points["accuracy"] == [(40, 0.54), (80, 0.58)]
    assert points["train_loss"] == [(40, 0.7), (80, 0.7)]
    assert (points["r_parameters"], points["stored_bytes"]) == ([(0, 32.0)], [(0, 400.0)])
    assert (child.metrics["wall_s"], child.metrics["total_device_s"]) == (12.5, 8.0)
    assert child.tags["loraxs.reason"] == "weak at step 80"


def test_replaying_everything_changes_nothing(open_tracker, record, look, study_dir, adapter_folder, report):
    tracker = open_tracker()
    record(tracker)
    tracker.trial_started("t3", {"rank": 4096}, None)  # its params resolve to nothing
    tracker.trial_finished("t3", TrialState.FAIL, "`rank` must be in 1..384", wall_s=400.0, worked_s=30.0)
    tracker.adapter_logged("t0", adapter_folder)
    assert tracker.close()
    before = look()
    assert before.children["t3"].data.params == {"rank": "4096"}
    assert before.children["t3"].data.metrics["wall_s"] == 30.0, "it leaves out when no driver was at work"
    (study_dir / "mlflow.offset").unlink()
    again = open_tracker()
    assert again.waiting
    again.trial_reported(report("t0", 80, accuracy=0.9))  # a search that goes on may tell what it has told
    assert again.flush()
    after = look()
    assert len(after.parents) == 1
    assert after.points == before.points
    known = [
        [(trial, run.info.run_id, run.info.end_time) for trial, run in seen.children.items()]
        for seen in (before, after)
    ]
    assert known[0] == known[1]
    assert [model.model_id for model in after.models] == [model.model_id for model in before.models]


def test_baselines_are_metrics_of_the_searchs_run(open_tracker, record, look):
    constant = Baseline("constant", {"accuracy": 0.5}, {"accuracy": 0.52}, answer=1)
    features = Baseline("features", {"accuracy": 0.7}, failed="too slow")
    tracker = open_tracker()
    record(tracker)
    tracker.baselines_measured([])
    tracker.baselines_measured([constant, features])
    assert tracker.close()
    again = open_tracker()
    again.baselines_measured([constant, features])
    assert not again.waiting, "told twice they count once"
    (parent,) = look().parents
    assert {name: value for name, value in parent.data.metrics.items() if name.startswith("baseline.")} == {
        "baseline.constant.validation.accuracy": 0.5,
        "baseline.constant.test.accuracy": 0.52,
        "baseline.features.validation.accuracy": 0.7,
    }
    assert parent.data.tags["loraxs.baseline.constant.answer"] == "1"
    assert parent.data.tags["loraxs.baseline.features.failed"] == "too slow"


def test_a_search_that_goes_on_uses_its_run_and_replaces_its_report(open_tracker, store_uri, look, study_dir, caplog):
    report = study_dir / "report.html"
    tracker = open_tracker()
    tracker.search_started("task: {}\n", SearchPlan(trials=3))
    assert not tracker.has_report
    report.write_text("<p>1</p>")
    tracker.report_written(report)
    tracker.search_finished("FINISHED")
    assert tracker.close()
    again = open_tracker()
    assert again.has_report
    again.search_started("task: {}\n", SearchPlan(trials=20))  # a changed param, which MLflow would refuse
    assert not again.has_report
    report.write_text("<p>2</p>")
    again.report_written(report)
    assert again.flush()
    assert "refuses" not in caplog.text
    again.report_written(study_dir / "gone.html")
    assert again.close()
    (parent,) = look().parents
    assert parent.info.status == "RUNNING"
    kept = connect(store_uri).download_artifacts(parent.info.run_id, "report.html")
    assert Path(kept).read_text() == "<p>2</p>"
    assert "gone.html is gone" in caplog.text, "set aside, and nothing waits for it"


def test_a_run_whose_answer_was_lost_is_found_and_not_made_again(open_tracker, look, monkeypatch, hyperparameters):
    create, lost = MlflowClient.create_run, iter(range(3))

    def failing(client: MlflowClient, *where: Any, **options: Any) -> Any:
        made = create(client, *where, **options)
        if "trial_id" in options["tags"] and next(lost, None) is not None:
            raise ConnectionError("the answer was lost")
        return made

    monkeypatch.setattr(MlflowClient, "create_run", failing)
    tracker = open_tracker()
    tracker.trial_started("t0", {}, hyperparameters)
    assert tracker.flush()
    assert set(look().children) == {"t0"}


def test_a_run_of_a_trial_that_was_lost_with_a_log_is_not_that_of_the_next_one_of_its_number(
    tmp_path, store_uri, look, hyperparameters, caplog
):
    """A machine told MLflow of t1 and was lost before t1 was in the copy that another one goes on from."""

    def told(folder: Path, trial_id: str, at: float, *, is_ours: bool = True) -> None:
        tracker = Tracker("s1", folder, store_uri, "exp", is_ours=lambda: is_ours)
        started = TrialStarted(at=at, trial_id=trial_id, params={}, hyperparameters=hyperparameters)
        StudyLog(folder / "journal.jsonl", "s1").append(started)
        tracker.close(timeout=10.0 if is_ours else 1.0)

    def runs() -> dict[str, str]:
        return {trial_id: run.info.run_id for trial_id, run in look().children.items()}

    lost = tmp_path / "lost"
    lost.mkdir()
    told(lost, "t0", 2.0)
    copy = shutil.copytree(lost, tmp_path / "copy")
    told(lost, "t1", 3.0)
    before, unsure = runs(), shutil.copytree(copy, tmp_path / "unsure")
    told(unsure, "t1", 6.0, is_ours=False)
    assert "may have been taken over" in caplog.text
    assert runs() == before
    told(copy, "t1", 6.0)
    after, aside = runs(), "t1, lost with the log of another machine"
    assert after == before | {aside: before["t1"], "t1": after["t1"]}
    assert after["t1"] != before["t1"]
    assert look().children[aside].info.status == "KILLED"
    (copy / "mlflow.offset").unlink()
    tracker = Tracker("s1", copy, store_uri, "exp", is_ours=lambda: True)
    assert tracker.close()
    assert runs() == after


def test_an_adapter_becomes_one_ready_logged_model_of_its_run_and_a_refits_one_of_its_trials(
    open_tracker, look, adapter_folder, hyperparameters, tmp_path
):
    refit = tmp_path / "refit"
    refit.mkdir()
    (refit / "adapter_model.safetensors").write_bytes(b"of another seed")
    tracker, trial = open_tracker(), "a/b:c.1"  # characters a logged model's name may not hold
    tracker.trial_started(trial, {}, hyperparameters)
    tracker.adapter_logged(trial, adapter_folder)
    tracker.adapter_logged(trial, adapter_folder)
    tracker.adapter_logged("00000.2", refit, trial)
    assert tracker.flush()
    seen = look()
    assert list(seen.children) == [trial], "a refit is no trial"
    run, models = seen.children[trial], {model.tags["trial_id"]: model for model in seen.models}
    assert len(models) == len(seen.models) == 2
    assert {(str(model.status), model.source_run_id) for model in seen.models} == {("READY", run.info.run_id)}
    assert run.data.tags["loraxs.model_id"] == models[trial].model_id
    assert run.data.tags["loraxs.model_id.refit"] == models["00000.2"].model_id
    kept = {path.name: path.read_bytes() for path in Path(models[trial].artifact_location).iterdir()}
    assert kept == {path.name: path.read_bytes() for path in adapter_folder.iterdir()}


def test_the_name_of_a_run_has_number_rank_modules_and_rate_first(open_tracker, look):
    tracker = open_tracker()
    first = {"scale": 0.5, "learning_rate": 0.002, "target_modules": "attention", "rank": 16}
    tracker.trial_started("00012", first)
    tracker.trial_started("00001", {"target_modules": "a" * 60, "head": "b" * 30, "learning_rate": 1e-9})
    assert tracker.flush()
    assert {trial_id: run.info.run_name for trial_id, run in look().children.items()} == {
        "00012": "#12 r16 attention lr 2e-3 scale 0.5",
        "00001": f"#1 {'a' * 23}… lr 1e-9",
    }
