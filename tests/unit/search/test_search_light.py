from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "datasets")
MODULES = (
    "hosts.study_actors",
    "tune.searcher",
    "tune.runner",
    "driver.candidates",
    "tune.trainable",
    "hosts.directory",
    "ledger.ledger",
    "cluster.doctor",
    "driver.sync",
)


@pytest.mark.parametrize("module", MODULES)
def test_driver_keeper_and_trainables_load_no_torch(module: str) -> None:
    """Each is a process of its own on a cluster; only hosts pay for torch."""
    code = f"import sys, loraxs_search.search.{module}; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
