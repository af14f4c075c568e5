"""Whoever asks at the same time as another gets the one whole thing that both ask for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import torch

from loraxs_search.factors.store import FactorStore
from loraxs_search.tracking.store import connect, ensure_store

SCRIPT = """
import sys, time
from pathlib import Path
import torch
from loraxs_search.factors.store import FactorStore
root, gate = Path(sys.argv[1]), Path(sys.argv[2])
weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
print("ready", flush=True)
while not gate.exists():
    time.sleep(0.001)
print(FactorStore(root).get(weight, rank=64).left.double().sum().item())
"""


def test_processes_that_compute_the_same_key_at_once_end_with_one_good_file(tmp_path):
    root, gate = tmp_path / "factors", tmp_path / "gate"
    command = [sys.executable, "-c", SCRIPT, str(root), str(gate)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    gate.touch()
    answers = {run.communicate(timeout=60)[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert len(answers) == 1
    (file,) = (path for path in root.rglob("*") if path.is_file())
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    assert FactorStore(root).get(weight, rank=64).left.double().sum().item() == float(answers.pop())
    assert file.suffix == ".safetensors"


def test_two_at_once_create_one_store_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'new folder' / 'mlflow.db'}"
    threads = [threading.Thread(target=ensure_store, args=(uri,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    experiments = connect(uri).search_experiments()
    assert [e.artifact_location for e in experiments] == [str(tmp_path / "new folder" / "artifacts" / "0")]
    assert sorted(p.name for p in (tmp_path / "new folder").iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    assert [p.name for p in tmp_path.iterdir()] == ["new folder"]  # nothing in the working directory
