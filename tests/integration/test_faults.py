"""Faults one at a time, on a tiny base: nothing is lost or doubled."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.cases import CASES, missing_means, trials_fail
from faults.records import Losses
from faults.world import World

pytestmark = [
    pytest.mark.long(part="faults"),
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
# What others of the suite do in a smaller way: kills of the driver, a node that leaves, a server that is killed.
LONG = ("driver killed", "worker node killed", "MLflow away in between", "driver's disk full")


@pytest.fixture
def world(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A short path, since Ray's sockets below have long names, and a home that the environment names."""
    folder = Path(tempfile.mkdtemp(prefix="lx-"))
    home = folder / "home"
    home.mkdir()
    monkeypatch.setenv("LORAXS_HOME", str(home))
    yield World(folder, home, base=str(tiny_base), kills=1, outage_s=3.0)
    shutil.rmtree(folder)


def test_nothing_is_lost_or_doubled_where_trials_fail_by_themselves(
    ray_here: None, in_search_home: Path, tiny_base: Path, tmp_path: Path
) -> None:
    world = World(tmp_path, in_search_home, base=str(tiny_base))
    assert trials_fail(world, random.Random(0)) == Losses()


@pytest.mark.parametrize("name", LONG)
def test_nothing_is_lost_or_doubled(name: str, world: World) -> None:
    _, case = CASES[name]
    if reason := missing_means(case, world):
        pytest.skip(reason)
    assert case(world, random.Random(0)) == Losses()
