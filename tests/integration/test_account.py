"""An account that `--tracking-uri` names reaches the server and nothing else: no file of ours or Ray's, no output."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import urllib.parse
from pathlib import Path

import pytest
from support.shell import start

from loraxs_search.studies.folder import StudyFolder
from loraxs_search.tracking.store import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def ray_folder(monkeypatch):
    """Where Ray keeps its sessions; its sockets want a short path."""
    folder = Path(tempfile.mkdtemp(prefix="lx-", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def say(fresh_home):
    """Run a command line; return its exit code and all it says."""

    def command(*arguments: str) -> tuple[int, str]:
        with start(fresh_home, *arguments) as process:
            out, err = process.communicate(timeout=200)
        return process.returncode, out + err

    return command


@pytest.mark.long(part="storage")
def test_a_password_in_the_tracking_uri_is_kept_nowhere(
    server_with_accounts, say, ray_folder, tiny_space, fresh_home, tmp_path, monkeypatch
):
    password, uri = os.environ["MLFLOW_TRACKING_PASSWORD"], server_with_accounts.uri
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name)
    quoted = urllib.parse.quote(password)
    address = uri.replace("://", f"://searcher:{quoted}@")
    (tmp_path / "shared").mkdir()
    storage = ("--storage", str(tmp_path / "shared"))
    short = ("search.trials=1", "search.max_steps=2", "search.report_every=2", "promotion.seeds=0")
    options = [part for override in short for part in ("--set", override)]
    code, talk = say("launch", str(tiny_space), "--name", "s", "--tracking-uri", address, *storage, *options)
    assert code == 0, talk
    assert re.search(rf"browse the trials: loraxs-search ui \S+ \({re.escape(uri)}\)", talk)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "searcher")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    experiment = connect(uri).get_experiment_by_name("tiny-reviews")
    assert len(connect(uri).search_runs([experiment.experiment_id])) == 2, "a search of one trial"
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")

    code, answer = say("promote", "s", "--traceback")
    assert code == 1, answer
    talk += answer
    for study in (StudyFolder.open("s").path, tmp_path / "shared" / "s"):
        (study / "candidates.json").unlink()  # as if its driver had been killed at the very end
    code, answer = say("resume", "s")
    assert code == 1, answer
    assert "hint: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in answer
    talk += answer
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    code, answer = say("resume", "s")
    assert code == 0, answer

    assert list(ray_folder.rglob("*.log")), "Ray kept its logs there"
    for secret in (password, quoted):
        assert secret not in talk + answer
        for folder in (fresh_home, ray_folder, tmp_path / "shared"):
            found = subprocess.run(["grep", "-rlaF", secret, str(folder)], capture_output=True, text=True, check=False)
            assert found.stdout == "", f"in the clear in {found.stdout}"
