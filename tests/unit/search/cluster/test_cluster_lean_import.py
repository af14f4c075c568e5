"""What a trial's process imports of Ray Tune."""

from __future__ import annotations

import subprocess
import sys


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


IN_A_WORKER = "import ray, sys; from ray._private import worker; worker.global_worker.mode = ray.WORKER_MODE\n"


def test_a_workers_process_has_no_tables_and_can_import_them_still() -> None:
    code = f"""{IN_A_WORKER}
from loraxs_search.search.tune.trainable import TrialTrainable
from ray.tune import Trainable
assert issubclass(TrialTrainable, Trainable)
assert not [m for m in sys.modules if m.split('.')[0] == 'pandas' or m.startswith('ray.data')]
import pandas
print(pandas.DataFrame({{'a': [1, 2]}}).a.sum(), ray.data.__name__)
"""
    assert printed(code) == "3 ray.data"


def test_what_cannot_be_left_out_is_imported_whole() -> None:
    code = f"""{IN_A_WORKER}
from loraxs_search.search.cluster import lean_import
lean_import._UNUSED = ("pyarrow", "pandas")  # pandas asks pyarrow for its version
tune = lean_import.import_tune()
import pyarrow
print(tune.Tuner.__module__, "pandas" in sys.modules, pyarrow.__version__ != "")
"""
    assert printed(code) == "ray.tune.tuner True True"
