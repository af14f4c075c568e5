from __future__ import annotations

import json
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


# What each of them loads that those before it have not; in the end, what a driver has of Ray Tune's tables.
IMPORT = f"""
import importlib, json, sys
loaded, seen = {{}}, set()
for module in {MODULES}:
    importlib.import_module(f"loraxs_search.search.{{module}}")
    loaded[module] = sorted(set({HEAVY}) & set(sys.modules) - seen)
    seen.update(loaded[module])
print(json.dumps([loaded, [name in sys.modules for name in ("pandas", "ray.data")]]))
"""


@pytest.fixture(scope="module")
def imported() -> tuple[dict[str, list[str]], list[bool]]:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    loaded, tables = json.loads(done.stdout)
    return loaded, tables


@pytest.mark.parametrize("module", MODULES)
def test_driver_keeper_and_trainables_load_no_torch(
    imported: tuple[dict[str, list[str]], list[bool]], module: str
) -> None:
    """Each is a process of its own on a cluster; only hosts pay for torch."""
    assert imported[0][module] == []


def test_a_driver_has_the_tables_of_ray_tune(imported: tuple[dict[str, list[str]], list[bool]]) -> None:
    """Only a trial's process goes without: tests/unit/search/cluster/test_cluster_lean_import.py."""
    assert imported[1] == [True, True]
