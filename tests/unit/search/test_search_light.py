from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "datasets")
MODULES = ("tune.loop", "driver.session", "tune.advancer", "hosts.pool", "cluster.doctor", "driver.result")


# What each of them loads that those before it have not.
IMPORT = f"""
import importlib, json, sys
loaded, seen = {{}}, set()
for module in {MODULES}:
    importlib.import_module(f"loraxs_search.search.{{module}}")
    loaded[module] = sorted(set({HEAVY}) & set(sys.modules) - seen)
    seen.update(loaded[module])
print(json.dumps(loaded))
"""


def test_driver_snapshot_store_and_trainables_load_no_torch():
    """Each is a process of its own on a cluster; only hosts pay for torch."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {module: [] for module in MODULES}
