"""Faults one at a time, each for real in a world of its own: nothing is lost or doubled, and no trial is blamed."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from faults import disks, nodes, stores
from faults.records import Losses
from faults.world import World, reasons
from support.shell import num_reports, wait_for

from loraxs_search.studies.folder import StudyFolder

pytestmark = [
    pytest.mark.long(part="faults"),
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture
def world(tiny_base, monkeypatch):
    """A short path, since Ray's sockets below have long names, and a home that the environment names."""
    folder = Path(tempfile.mkdtemp(prefix="lx-"))
    home = folder / "home"
    home.mkdir()
    monkeypatch.setenv("LORAXS_HOME", str(home))
    yield World(folder, home, base=str(tiny_base))
    shutil.rmtree(folder)


def check(world: World) -> None:
    """Assert that nothing is lost, and that no trial has failed."""
    failed = [reason for study in world.studies for state, reason in reasons(study) if state == "FAIL"]
    assert (failed, world.losses()) == ([], Losses())


def test_mlflow_goes_in_the_middle_and_comes_back_later(world):
    if reason := stores.no_team_store():
        pytest.skip(reason)
    with stores.team_store(world.folder / "store") as store:
        process = world.launch("away", "--tracking-uri", store.uri)
        wait_for(process, lambda: num_reports("away") >= 3)
        store.mlflow.kill()
        back = threading.Timer(3.0, store.mlflow.start)
        back.start()
        world.finish(process)
        back.join()
        world.resume("away")  # writes what a search that was quicker than the outage could not
        assert store.num_artifacts() > 0
        check(world)


@pytest.mark.parametrize("whose", ["driver", "worker"])
def test_a_disk_that_is_full_ends_the_search_and_with_room_again_it_goes_on(world, whose):
    if reason := disks.no_mounts(world.folder):
        pytest.skip(reason)
    with disks.disk(world.folder / "small", 400) as disk:
        if whose == "driver":
            world.move_home(disk.path / "home")
            process = world.launch("full")
            wait_for(process, lambda: num_reports("full") >= 2)
            disk.fill()
            code, talk = world.end(process)
            disk.free()
            world.resume("full")
        else:
            two = [nodes.Node(), nodes.Node()]
            with nodes.cluster(world.folder / "c", two, {1: disk.path / "home"}) as cluster:
                world.env |= cluster.env
                disk.fill()
                code, talk = world.end(world.launch("full", "--address", cluster.address))
                disk.free()
                options, is_begun = ("full", "--address", cluster.address), StudyFolder.exists("full")
                world.finish(world.start("resume", *options) if is_begun else world.launch(*options))
        assert (code, "No space left" in talk or "is full" in talk) == (1, True), talk
        check(world)
