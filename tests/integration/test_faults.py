"""Faults one at a time, each for real in a world of its own: nothing is lost or doubled, and no trial is blamed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from faults import disks, nodes
from faults.world import World, reasons

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


def test_a_worker_whose_disk_is_full_ends_the_search_and_with_room_again_it_goes_on(world):
    if reason := disks.no_mounts(world.folder):
        pytest.skip(reason)
    with disks.disk(world.folder / "small", 400) as disk:
        two = [nodes.Node(), nodes.Node()]
        with nodes.ray_cluster(two, {1: disk.path / "home"}) as cluster:
            world.env |= cluster.env
            disk.fill()
            code, talk = world.end(world.launch("full", "--address", cluster.address))
            assert (code, "No space left" in talk or "is full" in talk) == (1, True), talk
            disk.free()
            options, is_begun = ("full", "--address", cluster.address), StudyFolder.exists("full")
            world.finish(world.start("resume", *options) if is_begun else world.launch(*options))
        failed = [reason for state, reason in reasons("full") if state == "FAIL"]
        assert (failed, world.losses()) == ([], [])
