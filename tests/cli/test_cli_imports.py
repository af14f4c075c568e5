"""What is not needed is not loaded: help and Tab come at once, and reading needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "ray", "mlflow", "transformers", "peft", "optuna", "datasets", "numpy")
# Each statement in a fork of one process, and what it loads of some modules that were not there before.
_FORKS = """
import contextlib, io, json, os, sys
{before}
statements, modules = json.loads(sys.argv[1])
known = set(sys.modules)
for statement in statements:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, statement
        continue
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        exec(statement)
    print(json.dumps([name for name in modules if name in sys.modules and name not in known]), flush=True)
    os._exit(0)
"""
PARSES = {"loraxs_search", "typer", "annotated_doc", "shellingham", "rich", "wrapt"}  # typer's own, and for columns


def loaded_by(statements: list[str], modules: tuple[str, ...] = HEAVY, before: str = "") -> dict[str, list[str]]:
    program = _FORKS.format(before=before)
    asked = [sys.executable, "-c", program, json.dumps([statements, modules])]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return dict(zip(statements, map(json.loads, done.stdout.splitlines()), strict=True))


def cli(*args: str) -> str:
    return f"from loraxs_search.cli._main import run; run({list(args)!r})"


def test_nothing_heavy_is_loaded(store_uri):
    words = {"COMP_WORDS": "loraxs-search launch --s", "COMP_CWORD": "2"}  # what a shell runs for each Tab
    tab = f"import os; os.environ |= { ({'_LORAXS_SEARCH_COMPLETE': 'complete_bash'} | words)!r}\n"
    light = [
        *("import loraxs_search", "import loraxs_search.api", cli("--help"), cli("launch", "--help"), cli("status")),
        *(cli("compare", "--help"), cli("compare", "nothing"), cli("report", "--help"), cli("report", "nothing")),
        *(cli("spaces", "ls"), cli("tasks", "ls"), cli("lauch"), cli("init", "away.csv")),
        f"{tab}from contextlib import suppress\nwith suppress(SystemExit): {cli()}",
        cli("launch", "movie_reviews", "--set", "parameters.rank=0"),
    ]
    loaded = loaded_by([*light, cli("pull", "nothing")])
    assert loaded["import loraxs_search.api"] == []
    assert [set(loaded.pop(statement)) - {"numpy"} for statement in light] == [set()] * len(light)
    assert [set(modules) - {"numpy"} for modules in loaded.values()] == [{"mlflow"}]


def test_what_answers_loads_nothing_of_a_search_and_what_peft_imports_can_be_imported_first(adapter):
    """Importing peft imports the plug-in, in the midst of whoever imports peft."""
    parts = [f"import loraxs_search.{name}" for name in ("trial", "engine.layers", "methods.loraxs.model")]
    predict = cli("predict", str(adapter), "a fine film")
    searching = ("mlflow", "ray", "optuna", "datasets", "sklearn", "pandas", "plotly", "sqlalchemy")
    before = "import torch, transformers.modeling_utils; assert 'peft' not in sys.modules"
    loaded = loaded_by([*parts, predict], (*searching, "peft"), before)
    assert loaded[predict] == ["peft"]


def test_driver_snapshot_store_and_trainables_load_no_torch():
    """Each is a process of its own on a cluster; only hosts pay for torch."""
    modules = ("tune.loop", "driver.session", "tune.advancer", "hosts.pool", "cluster.doctor", "driver.result")
    imports = [f"import loraxs_search.search.{module}" for module in modules]
    heavy = ("torch", "transformers", "peft", "datasets")
    assert loaded_by(imports, heavy, "import ray") == {statement: [] for statement in imports}


def test_help_loads_what_parses_the_command_line_and_nothing_else_and_freezes_nothing_at_exit():
    """How long it takes follows: 0.2 s on an idle machine.

    Libraries that count what they made report frozen objects as leaked, on Python 3.13.
    """
    end = "atexit.register(lambda: print(gc.get_freeze_count(), *sys.modules, file=sys.stderr))"
    program = (
        f"import atexit, gc, sys; sys.argv[1:] = ['--help']; from loraxs_search.cli._main import main; {end}; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    frozen, *names = done.stderr.split()
    loaded = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"sitecustomize"}
    assert {name for name in loaded if not name.startswith("_")} <= PARSES
    assert frozen == "0"
