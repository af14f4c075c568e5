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
_AT_EXIT = "import atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
PARSES = {"loraxs_search", "typer", "annotated_doc", "shellingham", "rich", "wrapt"}  # typer's own, and for columns


def loaded_by(statements: list[str], modules: tuple[str, ...] = HEAVY, before: str = "") -> dict[str, list[str]]:
    program = _FORKS.format(before=before)
    asked = [sys.executable, "-c", program, json.dumps([statements, modules])]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return dict(zip(statements, map(json.loads, done.stdout.splitlines()), strict=True))


def cli(*args: str) -> str:
    return f"from loraxs_search.cli._main import run; run({list(args)!r})"


def completed(line: str) -> str:
    """What a shell runs for each Tab."""
    words = {"COMP_WORDS": f"loraxs-search {line}", "COMP_CWORD": str(len(line.split(" ")))}
    shell = {"_LORAXS_SEARCH_COMPLETE": "complete_bash", **words}
    return f"import os; os.environ |= {shell!r}\nfrom contextlib import suppress\nwith suppress(SystemExit): {cli()}"


def test_nothing_heavy_is_loaded(store_uri):
    light = [
        *("import loraxs_search", "import loraxs_search.api", cli("--help"), cli("launch", "--help"), cli("status")),
        *(cli("compare", "--help"), cli("compare", "nothing"), cli("report", "--help"), cli("report", "nothing")),
        *(cli("spaces", "ls"), cli("tasks", "ls"), cli("lauch"), cli("init", "away.csv"), completed("launch --s")),
        cli("launch", "movie_reviews", "--set", "parameters.rank=0"),
    ]
    loaded = loaded_by([*light, cli("pull", "nothing")])
    assert loaded["import loraxs_search.api"] == []
    assert [set(loaded.pop(statement)) - {"numpy"} for statement in light] == [set()] * len(light)
    assert [set(modules) - {"numpy"} for modules in loaded.values()] == [{"mlflow"}]


def test_what_answers_loads_nothing_of_a_search_and_what_peft_imports_can_be_imported_first(adapter):
    """Importing peft imports the plug-in, in the midst of whoever imports peft."""
    parts = [f"import loraxs_search.{name}" for name in ("trial", "engine.layers", "methods.verification")]
    predict = cli("predict", str(adapter), "a fine film")
    searching = ("mlflow", "ray", "optuna", "datasets", "sklearn", "pandas", "plotly", "sqlalchemy")
    before = "import torch, transformers.modeling_utils; assert 'peft' not in sys.modules"
    loaded = loaded_by([*parts, predict], (*searching, "peft"), before)
    assert loaded[predict] == ["peft"]


def test_help_loads_what_parses_the_command_line_and_nothing_else():
    """How long it takes follows: 0.2 s on an idle machine."""
    program = f"import sys; sys.argv[1:] = ['--help']; from loraxs_search.cli._main import main\n{_AT_EXIT}main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()} - sys.stdlib_module_names - {"sitecustomize"}
    assert {name for name in loaded if not name.startswith("_")} <= PARSES


def test_nothing_is_frozen_at_exit():
    """Libraries that count what they made report frozen objects as leaked, on Python 3.13."""
    end = "import atexit, gc, sys; atexit.register(lambda: print(gc.get_freeze_count(), file=sys.stderr))"
    main = "sys.argv[1:] = ['--version']; from loraxs_search.cli._main import main; main()"
    done = subprocess.run([sys.executable, "-c", f"{end}; {main}"], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0"
