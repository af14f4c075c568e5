"""Faults one at a time, each for real in a world of its own: nothing is lost or doubled, and no trial is blamed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from faults import disks, nodes
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
    assert (failed, world.losses()) == ([], [])


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
            with nodes.ray_cluster(two, {1: disk.path / "home"}) as cluster:
                world.env |= cluster.env
                disk.fill()
                code, talk = world.end(world.launch("full", "--address", cluster.address))
                disk.free()
                options, is_begun = ("full", "--address", cluster.address), StudyFolder.exists("full")
                world.finish(world.start("resume", *options) if is_begun else world.launch(*options))
        assert (code, "No space left" in talk or "is full" in talk) == (1, True), talk
        check(world)
