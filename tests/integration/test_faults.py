"""Faults one at a time, each for real in a world of its own: nothing is lost or doubled, and no trial is blamed."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from faults import disks, faulty_host, nodes, stores
from faults.records import Losses
from faults.world import World, reasons
from support.shell import num_reports, wait_for

from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.search.driver.launch import new_study, search_study
from loraxs_search.search.hosts.host_config import host_config
from loraxs_search.search.hosts.pool import HostPool
from loraxs_search.search_space.load import load_space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.tracking.store import ensure_store

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


def test_each_trial_that_fails_by_itself_has_its_reason_and_the_others_go_on(
    ray_here, in_search_home, tiny_base, tmp_path
):
    """One raises, one runs out of memory, one lacks its metric."""
    from ray import cloudpickle

    world = World(tmp_path, in_search_home, base=str(tiny_base))
    space = load_space(str(world.space(trials=6)), overrides=("search.scheduler=none",))
    uri = resolve_uri(None)
    ensure_store(uri)
    info = new_study(space, "spoilt", uri)
    world.studies["spoilt"] = 6
    cloudpickle.register_pickle_by_value(faulty_host)  # hosts cannot import this folder
    pool = HostPool(replace(host_config([space]), make=faulty_host.faulty_host), [space.search])
    try:
        search_study(info, space, pool, None, None)
    finally:
        pool.close()
    found = reasons("spoilt")
    assert found[1] == ("FAIL", "ValueError: something nobody thought of")
    assert found[2][0] == "FAIL"
    assert "memory" in found[2][1]
    assert found[3] == ("FAIL", "`accuracy` must be among a report's metrics, but got f1, loss.")
    assert "FAIL" not in [found[number][0] for number in (0, 4, 5)]
    assert world.losses() == Losses()


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
