"""A home for the searches of a module, and a way to hold the records of a search against each other."""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from faults.world import Records, losses, read_records

if TYPE_CHECKING:
    from loraxs_search.search.driver.result import SearchResult
    from loraxs_search.search.hosts.host_actor import HostConfig
    from loraxs_search.search_space.space import Space

_RAY = contextlib.ExitStack()


@pytest.fixture(scope="session")
def search_home(tmp_path_factory, store_template):
    """A home for the searches of all modules: their studies have names of their own."""
    home = tmp_path_factory.mktemp("search-home")
    shutil.copy(store_template, home / "mlflow.db")
    return home


@pytest.fixture
def in_search_home(fresh_home, search_home, monkeypatch):
    """Let this test work in that home."""
    monkeypatch.setenv("LORAXS_HOME", str(search_home))
    return search_home


@pytest.fixture(scope="session")
def ray_here(search_home):
    """One Ray for all tests that search in this process: `launch` uses a connection that is there already.

    A new host takes longer than all else of a short search: searches with the same settings share hosts. A test that
    changes files of a base or of rows clears what this returns.
    """
    from loraxs_search.search.cluster.connection import connected
    from loraxs_search.search.hosts import pool

    started: dict[str, Any] = {}

    @functools.wraps(pool.start_named)
    def start_named(kind: Any, *args: Any) -> Any:
        if kind is not pool.HostDirectory:
            return start(kind, *args)
        (config,) = args
        if (key := repr(config)) not in started:
            started[key] = start(kind, config)
        return started[key]

    start, patch = pool.start_named, _RAY.enter_context(pytest.MonkeyPatch.context())
    patch.setattr(pool, "start_named", start_named)
    patch.setattr(pool.HostPool, "close", lambda _: None)
    with pytest.MonkeyPatch.context() as here:
        here.setenv("LORAXS_HOME", str(search_home))
        _RAY.enter_context(connected(None))
    return started


@pytest.hookimpl(trylast=True)  # after the fixtures of the test
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """End that Ray with the last test that needs it (tests/conftest.py puts them together): others must find none."""
    if "ray_here" not in getattr(nextitem, "fixturenames", ()):
        _RAY.close()


@pytest.fixture(scope="session")
def full_ray(request):
    """`ray[default]` in an environment that sees ours, made once: in ours, every node of every test would be slower."""
    wanted = f"ray[default]=={version('ray')}"
    folder = Path(request.config.cache.mkdir(f"ray-default-{version('ray')}")) / "env"
    program = folder / "bin" / "ray"
    if not program.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        theirs = next(folder.glob("lib/python*/site-packages"))
        (theirs / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
        command = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", wanted]
        if subprocess.run(command, check=False).returncode:
            pytest.skip(f"{wanted} cannot be installed here: is there a package registry?")
        program.write_text(f"#!{folder / 'bin' / 'python'}\nfrom ray.scripts.scripts import main\nmain()\n")
        program.chmod(0o755)
    return program


@pytest.fixture
def search(ray_here, in_search_home, tiny_space):
    """Search the tiny space with overrides, on hosts that stay for the next search with the same base and settings."""

    def launched(name: str, *overrides: str) -> SearchResult:
        from loraxs_search.search.driver.launch import launch

        return launch(str(tiny_space), name=name, overrides=overrides)

    return launched


@pytest.fixture
def simulated(search, monkeypatch):
    """Search as `search` does, on hosts that train nothing: for what is the driver's alone. `resume` has them too.

    With `search.concurrent=1` one trial runs at a time, on the same hosts.
    """
    from ray import cloudpickle
    from support import simulated_host

    from loraxs_search.records.adapter import LargestTrial
    from loraxs_search.search.hosts import host_actor

    cloudpickle.register_pickle_by_value(simulated_host)  # hosts cannot import this folder
    make = functools.partial(simulated_host.simulated_host, pace_s=0.01)
    real = host_actor.host_config

    def config(spaces: Sequence[Space]) -> HostConfig:
        made = real(spaces)
        slots = 2 if made.pack_size == "auto" else made.pack_size
        return replace(made, make=make, pack_size=slots, largest=LargestTrial())  # the same for all spaces

    monkeypatch.setattr(host_actor, "host_config", config)
    return search


@pytest.fixture
def agree():
    """Assert that journal and MLflow hold the same trials, all ended, none twice, no point missing."""

    def check(study: str, num_trials: int) -> Records:
        records = read_records(study)
        assert records.num_parents == 1, "one parent run per search"
        assert records.journal == records.mlflow
        assert losses(records, num_trials) == []
        return records

    return check
