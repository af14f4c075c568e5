"""Optuna Dashboard opens the file that `studies export` writes: its own command, its own environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.environments import Environment, environment, version
from support.ports import free_port
from support.searched_studies import Tried, searched

from loraxs_search.cli._main import run
from loraxs_search.records.trial import TrialState
from loraxs_search.studies.folder import StudyFolder

pytestmark = [pytest.mark.long(part="software"), pytest.mark.timeout(1200)]

SPACE = """
task: sst2
base_model: org/base
parameters: {rank: {choice: [4, 8, 16]}, learning_rate: {log_uniform: [0.001, 0.1]}, batch_size: 8}
"""

SERVED = """
import json, subprocess, sys, time, urllib.request
from pathlib import Path
storage, port = sys.argv[1:]
command = Path(sys.executable).with_name("optuna-dashboard")
server = subprocess.Popen([command, storage, "--port", port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def ask(path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read()

try:
    for _ in range(240):
        try:
            studies = json.loads(ask("/api/studies"))["study_summaries"]
            break
        except OSError:
            time.sleep(0.5)
    page = ask("/dashboard/").decode()
    trials = json.loads(ask(f"/api/studies/{studies[0]['study_id']}"))["trials"]
    print(json.dumps({"studies": studies, "trials": trials, "page": "<html" in page.lower()}))
finally:
    server.terminate()
    server.wait()
"""


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with Optuna Dashboard and our version of Optuna, and nothing of ours."""
    folder = tmp_path_factory.mktemp("environments")
    return environment(folder, "optuna-dashboard", lambda made: made.pip("optuna-dashboard>=0.21", version("optuna")))


@pytest.fixture
def reviews(fresh_home: Path) -> StudyFolder:
    """A study of three trials."""
    tried = [
        Tried({"rank": 4, "learning_rate": 0.01, "batch_size": 8}, 0.8),
        Tried({"rank": 8, "learning_rate": 0.02, "batch_size": 8}, 0.9),
        Tried({"rank": 4, "learning_rate": 0.005, "batch_size": 8}, 0.7, state=TrialState.PRUNED),
    ]
    return searched("reviews", tried, space=SPACE)


def test_the_dashboard_opens_what_studies_export_writes(
    dashboard: Environment, reviews: StudyFolder, tmp_path: Path
) -> None:
    path = tmp_path / "reviews.optuna.jsonl"
    assert run(["studies", "export", "reviews", "--optuna", str(path)]) == 0
    served = json.loads(dashboard.run(SERVED, str(path), str(free_port()), timeout_s=300))
    assert [study["study_name"] for study in served["studies"]] == ["reviews"]
    assert [trial["state"] for trial in served["trials"]] == ["Complete", "Complete", "Pruned"]
    assert [trial["values"] for trial in served["trials"]] == [[0.8], [0.9], [0.7]]
    params = [{param["name"]: param["param_external_value"] for param in trial["params"]} for trial in served["trials"]]
    assert [each["rank"] for each in params] == ["4", "8", "4"]
    assert served["page"]
