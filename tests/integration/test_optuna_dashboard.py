"""Optuna Dashboard opens the sampler's memory of a study: its own command, its own environment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from support.environments import Environment, environment, version
from support.ports import free_port
from support.searched_studies import Tried, searched

from loraxs_search.cli import run
from loraxs_search.home import home
from loraxs_search.records import TrialState
from loraxs_search.search.ledger.optuna_storage import open_optuna_study
from loraxs_search.search.ledger.rebuild import rebuild
from loraxs_search.search_space import load_space
from loraxs_search.studies import StudyFolder

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

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
def reviews(store_uri: str) -> StudyFolder:
    """A study of three trials, with the memory of its sampler as a search leaves it."""
    tried = [
        Tried({"rank": 4, "learning_rate": 0.01}, 0.8),
        Tried({"rank": 8, "learning_rate": 0.02}, 0.9),
        Tried({"rank": 4, "learning_rate": 0.005}, 0.7, state=TrialState.PRUNED),
    ]
    folder = searched("reviews", tried)
    fixed = [f"parameters.{name}={value}" for name, value in (("scale", 1.0), ("head_learning_rate", 0.01))]
    space = load_space("movie_reviews", overrides=[*fixed, "parameters.learning_rate={uniform: [0.001, 0.1]}"])
    study = open_optuna_study(folder.optuna_path, folder.name, "maximize")
    records = folder.journal().records
    whole = {
        trial_id: replace(record, params={**record.params, "target_modules": "attention"})
        for trial_id, record in records.items()
    }
    rebuild(study, space, whole)
    for trial, record in zip(study.get_trials(deepcopy=False), records.values(), strict=True):
        state = optuna.trial.TrialState[record.state.value]
        value = record.reports[-1].metrics["accuracy"]
        study._storage.set_trial_state_values(trial._trial_id, state, [value])
    return folder


def test_the_dashboard_opens_what_studies_show_prints(dashboard: Environment, reviews: StudyFolder, capsys) -> None:
    assert run(["studies", "show", "reviews"]) == 0
    said = capsys.readouterr()
    (path,) = (line.split()[-1] for line in said.err.splitlines() if "optuna-dashboard" in line)
    before = Path(path).read_bytes()
    served = json.loads(dashboard.run(SERVED, path, str(free_port()), timeout_s=300))
    assert [study["study_name"] for study in served["studies"]] == ["reviews"]
    assert [trial["state"] for trial in served["trials"]] == ["Complete", "Complete", "Pruned"]
    assert [trial["values"] for trial in served["trials"]] == [[0.8], [0.9], [0.7]]
    params = [{param["name"]: param["param_external_value"] for param in trial["params"]} for trial in served["trials"]]
    assert [each["rank"] for each in params] == ["4", "8", "4"]
    assert served["page"]
    assert Path(path).read_bytes() == before, "looking changes nothing"
    assert Path(path).is_relative_to(home())
