"""Runs and adapters on a real MLflow server, and what is left after kill -9 at bad moments."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys

import pytest
from support.shell import until
from support.toys import HYPERPARAMETERS, TASK, adapter, candidate
from support.tracked import Tracked

from loraxs_search.errors import TrackingError
from loraxs_search.records.search import PromotionRule, SearchPlan
from loraxs_search.records.trial import AdapterSize, TrialReport, TrialState
from loraxs_search.registry.changes import Promoter
from loraxs_search.registry.manifest import folder_digest, verify
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import Registry
from loraxs_search.tracking.store import connect, ensure_store

pytestmark = pytest.mark.slow


def _report(trial_id: str, step: int) -> TrialReport:
    return TrialReport(trial_id, step, {"accuracy": step / 1000}, 0.5, 1.0, 100, AdapterSize(16, 10, 400))


def _trial(tracker: Tracked, trial_id: str, steps: tuple[int, ...] = (40, 80)) -> None:
    tracker.trial_started(trial_id, {"rank": 4}, HYPERPARAMETERS)
    for step in steps:
        tracker.trial_reported(_report(trial_id, step))
    tracker.trial_finished(trial_id, TrialState.COMPLETE, "ran all steps", 2.0)


def _points(uri: str, key: str = "accuracy", experiment: str = "exp") -> dict[str, list[int]]:
    """Return the steps recorded of each trial; one run per trial or the test fails."""
    client = connect(uri)
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    steps: dict[str, list[int]] = {}
    for run in client.search_runs([experiment_id], "tags.`loraxs.kind` = 'trial'"):
        trial_id = run.data.tags["trial_id"]
        assert trial_id not in steps
        steps[trial_id] = sorted(point.step for point in client.get_metric_history(run.info.run_id, key))
    return steps


@pytest.fixture(scope="module")
def promoted(mlflow_server, tmp_path_factory):
    """A folder of three adapters, two of which have become champion on the server, one after the other."""
    folder = tmp_path_factory.mktemp("promoted")
    tracker = Tracked("s1", folder / "study", mlflow_server.uri, "promoted")
    tracker.trial_started("t0", {"rank": 4}, HYPERPARAMETERS)
    tracker.adapter_logged("t0", adapter(folder / "t0", "t0"))
    assert tracker.close(60)
    rule = PromotionRule(confidence=0, require="constant")
    for trial_id, accuracy, version in (("t0", 0.8, 1), ("t1", 0.7, None), ("t2", 0.9, 2)):
        made = folder / trial_id if trial_id == "t0" else adapter(folder / trial_id, trial_id)
        decision, got = Promoter(mlflow_server.uri, TASK.name).promote(
            rule, TASK, [candidate(trial_id, accuracy)], {trial_id: made}
        )
        assert (decision.promoted, got) == (version is not None, version)
    return folder


# ---- a server that dies ----------------------------------------------------------------------------------------------
def test_a_server_killed_in_the_middle_and_started_again_lacks_and_doubles_nothing(
    promoted, mlflow_server, tmp_path, caplog
):
    """While it is away, what was pulled before is there."""
    server = mlflow_server
    ensure_store(server.uri)
    tracker = Tracked("s1", tmp_path / "study", server.uri, "killed")
    tracker.search_started("task: {}\n", SearchPlan())
    tracker.trial_started("long", {"rank": 4}, HYPERPARAMETERS)
    tracker.trial_reported(_report("long", 40))
    _trial(tracker, "before")
    assert tracker.flush(60)
    assert [past.promoted for past in Registry(server.uri).history("toy")] == [True, False, True]
    pulled = pull("toy", uri=server.uri)
    assert pulled.name == folder_digest(promoted / "t2")
    assert [verify(path).trial_id for path in (pulled, pull("toy:1", uri=server.uri))] == ["t2", "t0"]

    server.kill()
    tracker.trial_reported(_report("long", 80))
    _trial(tracker, "during")
    assert not tracker.flush(3)
    assert tracker.trouble is not None
    with caplog.at_level(logging.WARNING):
        assert pull("toy", uri=server.uri) == pulled
    assert "using the cached toy" in caplog.text
    with pytest.raises(TrackingError):
        pull("toy:2", uri=server.uri)

    server.start()
    tracker.trial_reported(_report("long", 120))
    _trial(tracker, "after")
    tracker.search_finished("FINISHED", {"best": 0.1})
    assert tracker.close(60)
    told = {"long": [40, 80, 120], "before": [40, 80], "during": [40, 80], "after": [40, 80]}
    assert _points(server.uri, experiment="killed") == told
    assert set(map(tuple, _points(server.uri, "wall_s", "killed").values())) == {(0,), ()}


# ---- the ui ----------------------------------------------------------------------------------------------------------
def test_the_ui_serves_the_embedded_store_until_interrupted(store_uri, make_mlflow_server):
    server, code = make_mlflow_server(), "import sys; from loraxs_search.tracking.store import run_ui; "
    code += "sys.exit(run_ui(sys.argv[1], port=int(sys.argv[2])))"
    command = [sys.executable, "-c", code, store_uri, str(server.port)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}) as process:
        until(server.answers)
        assert [e.name for e in connect(server.uri).search_experiments()] == ["Default"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    assert not server.answers()
