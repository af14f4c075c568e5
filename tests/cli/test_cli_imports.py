"""What is not needed is not loaded: help comes at once, and reading needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "mlflow", "transformers", "peft", "optuna", "datasets")
_PROGRAM = """
import contextlib, io, json, sys
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    {statement}
print(json.dumps([name for name in {heavy!r} if name in sys.modules]))
"""
# Imports each module first of ours, where what takes longest is there.
_EACH_FIRST = """
import os, sys
import torch, transformers.modeling_utils
for module in sys.argv[1:]:
    assert "peft" not in sys.modules
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, module
    else:
        __import__(module)
        os._exit(0)
"""


_AT_EXIT = "import atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
PARSES = {"loraxs_search", "typer", "annotated_doc", "shellingham", "rich", "wrapt"}  # typer's own, and for columns


def loaded_by(statement: str, modules: tuple[str, ...] = HEAVY) -> list[str]:
    program = _PROGRAM.format(statement=statement, heavy=modules)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=240)
    return json.loads(done.stdout)


def cli(*args: str) -> str:
    return f"from loraxs_search.cli import run; run({list(args)!r})"


@pytest.mark.parametrize(
    "statement",
    [
        "import loraxs_search",
        cli("--help"),
        cli("launch", "--help"),
        cli("status"),
        cli("compare", "--help"),
        cli("compare", "nothing"),
        cli("report", "--help"),
        cli("report", "nothing"),
        cli("spaces", "ls"),
        cli("tasks", "ls"),
        cli("lauch"),
        cli("init", "away.csv"),
    ],
)
def test_nothing_heavy_is_loaded(statement):
    assert loaded_by(statement) == []


def test_the_verbs_from_python_load_no_numpy():
    assert loaded_by("import loraxs_search.api", (*HEAVY, "numpy")) == []


def test_what_the_peft_plugin_needs_can_be_imported_first():
    """Importing peft imports the plug-in, in the midst of whoever imports peft."""
    modules = [f"loraxs_search.{name}" for name in ("trial", "engine.layers", "engine.rows", "methods.verification")]
    command = [sys.executable, "-c", _EACH_FIRST, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr


def test_a_space_with_faults_is_told_without_anything_heavy():
    assert loaded_by(cli("launch", "movie_reviews", "--set", "parameters.rank=0")) == []


def test_pull_loads_mlflow_alone(store_uri):
    assert loaded_by(cli("pull", "nothing")) == ["mlflow"]


def test_predict_loads_what_answers_and_nothing_of_a_search(adapter):
    searching = ("mlflow", "ray", "optuna", "datasets", "sklearn", "pandas", "plotly", "sqlalchemy")
    statement = cli("predict", str(adapter), "a fine film")
    assert loaded_by(statement, (*searching, "transformers")) == ["transformers"]


def test_help_loads_what_parses_the_command_line_and_nothing_else():
    """How long it takes follows: 0.2 s on an idle machine."""
    program = f"import sys; sys.argv[1:] = ['--help']; from loraxs_search.cli import main\n{_AT_EXIT}main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()} - sys.stdlib_module_names - {"sitecustomize"}
    assert {name for name in loaded if not name.startswith("_")} <= PARSES


def test_nothing_is_frozen_at_exit():
    """Libraries that count what they made report frozen objects as leaked, on Python 3.13."""
    end = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count(), file=sys.stderr))"
    main = "sys.argv[1:] = ['--version']; from loraxs_search.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", f"{end}; {main}"], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0"
