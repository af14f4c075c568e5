"""The faults. Each runs for real in a world of its own and asserts what must hold besides the records.

A case returns what its studies have lost, which is to be nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from support.boxes import boxes, no_boxes

from faults import disks, nodes, stores
from faults.records import Losses
from faults.world import World, reasons, titled, tree, unlike

Case = Callable[[World, random.Random], Losses]


# ---- a: the driver dies ----------------------------------------------------------------------------------------------
def driver_killed(world: World, rng: random.Random) -> Losses:
    """Kill -9 at random moments of a search, from its first second on; resumed each time, it is as if undisturbed.

    Kills of a search that is over would show nothing: another search takes those that are left.
    """
    world.trials, world.steps = 12, 8  # more than those that the sampler draws at random
    world.pack_size = "1"  # of trials at once, who reports first decides
    began = time.monotonic()
    world.finish(world.launch("undisturbed"))
    wall_s = time.monotonic() - began
    kills, searches = world.kills, 0
    while kills:
        study, searches = f"killed-{searches}", searches + 1
        while kills and _killed(world.launch_or_resume(study), rng.uniform(0.3, wall_s)):
            kills -= 1
        world.finish(world.launch_or_resume(study))
        assert not unlike(study, "undisturbed"), unlike(study, "undisturbed")
    return world.losses()


def _killed(process: subprocess.Popen[str], after_s: float) -> bool:
    """Kill a process after a time; return False when it had ended by then."""
    try:
        process.communicate(timeout=after_s)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True


# ---- b: a part of the cluster dies -----------------------------------------------------------------------------------
def host_killed(world: World, rng: random.Random) -> Losses:
    """Kill the process that trains: its trials go on from their last report."""
    return _kill_parts(world, rng, "HostActor")


def advancer_killed(world: World, rng: random.Random) -> Losses:
    """Kill the process that trains a node's trials for Tune: Ray starts another, and they go on from their reports."""
    return _kill_parts(world, rng, "TrialAdvancer")


def _kill_parts(world: World, rng: random.Random, title: str) -> Losses:
    reports = rng.randint(1, 4)
    process = world.launch("parts")
    world.wait_for(process, lambda: world.num_reports("parts") >= reports)
    found = titled(tree(process.pid), title)
    assert found
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    world.finish(process)
    return _without_failures(world, "parts")


def node_killed(world: World, rng: random.Random) -> Losses:
    """End one of two workers with everything on it: its trials go on elsewhere."""
    with nodes.cluster(world.folder / "c") as cluster:
        world.env |= cluster.env
        reports = rng.randint(2, 5)
        process = world.launch("node", "--address", cluster.address)
        world.wait_for(process, lambda: world.num_reports("node") >= reports)
        cluster.places[rng.choice([1, 2])].kill()
        world.finish(process)
    return _without_failures(world, "node")


def network_cut(world: World, rng: random.Random) -> Losses:
    """Pull a worker's cable for a while: its trials go on, there or elsewhere."""
    with boxes(2, show=[world.folder]) as machines, nodes.cluster_on(machines, world.folder / "c") as cluster:
        world.env |= cluster.env
        reports = rng.randint(2, 5)
        process = world.launch("cut", "--address", cluster.address)
        world.wait_for(process, lambda: world.num_reports("cut") >= reports)
        box = rng.choice(machines.boxes)
        box.cut()
        time.sleep(world.outage_s)
        box.join()
        world.finish(process)
    return _without_failures(world, "cut")


# ---- c: MLflow is away -----------------------------------------------------------------------------------------------
def mlflow_away_at_first(world: World, rng: random.Random) -> Losses:
    """MLflow goes once the search has begun, before its first report, and comes back later."""
    return _mlflow_away(world, (world.home / "studies" / "away").exists)


def mlflow_away_in_between(world: World, rng: random.Random) -> Losses:
    """MLflow goes in the middle and comes back later."""
    reports = rng.randint(2, 6)
    return _mlflow_away(world, lambda: world.num_reports("away") >= reports)


def _mlflow_away(world: World, reached: Callable[[], bool]) -> Losses:
    with stores.team_store(world.folder / "store") as store:
        process = world.launch("away", "--tracking-uri", store.uri)
        world.wait_for(process, reached)
        store.mlflow.kill()
        back = threading.Timer(world.outage_s, store.mlflow.start)
        back.start()
        world.finish(process)
        back.join()
        world.resume("away")  # writes what a search that was quicker than the outage could not
        assert store.num_artifacts() > 0
        return _without_failures(world, "away")


def mlflow_away_throughout(world: World, rng: random.Random) -> Losses:
    """MLflow goes once the search has begun and is back only after its end: `resume` writes everything."""
    with stores.team_store(world.folder / "store") as store:
        process = world.launch("gone", "--tracking-uri", store.uri)
        world.wait_for(process, (world.home / "studies" / "gone").exists)
        store.mlflow.kill()
        world.finish(process)
        store.mlflow.start()
        world.resume("gone")
        assert store.num_artifacts() > 0
        return _without_failures(world, "gone")


# ---- d: trials that fail by themselves -------------------------------------------------------------------------------
def trials_fail(world: World, rng: random.Random) -> Losses:
    """One raises, one runs out of memory, one lacks its metric: each FAILs with its reason, the others go on."""
    _drive(world, "spoilt", 6)
    found = dict(enumerate(reasons("spoilt")))
    assert found[1] == ("FAIL", "ValueError: something nobody thought of")
    assert found[2][0] == "FAIL"
    assert "memory" in found[2][1]
    assert found[3] == ("FAIL", "`accuracy` must be among a report's metrics, but got f1, loss.")
    assert "FAIL" not in [found[number][0] for number in (0, 4, 5)]
    return world.losses()


def _drive(world: World, study: str, num_trials: int) -> None:
    """Search in this process, on hosts that spoil some trials."""
    from ray import cloudpickle

    from faults import faulty_host
    from loraxs_search.log.study_log import SilentView
    from loraxs_search.mlflow_uri import resolve_uri
    from loraxs_search.search.cluster.connection import connected
    from loraxs_search.search.driver.launch import Driver, new_study
    from loraxs_search.search.hosts.host_config import host_config
    from loraxs_search.search.hosts.pool import HostPool
    from loraxs_search.search_space.load import load_space
    from loraxs_search.tracking.store import ensure_store

    space = load_space(str(world.space(trials=num_trials)), overrides=("search.scheduler=none",))
    uri = resolve_uri(None)
    ensure_store(uri)
    info = new_study(space, study, uri)
    world.studies[study] = num_trials
    cloudpickle.register_pickle_by_value(faulty_host)  # hosts cannot import this folder
    with connected(None):
        pool = HostPool(replace(host_config([space]), make=faulty_host.faulty_host), [space.search])
        try:
            Driver(info, space, SilentView(), threading.Event()).run(pool)
        finally:
            pool.close()


def all_trials_fail(world: World, rng: random.Random) -> Losses:
    """Every trial diverges: the search stops after five of thirty and says why."""
    process = world.launch("doomed", "--set", "parameters.learning_rate=1.0e+38", "--set", "search.trials=30")
    code, talk = world.end(process)
    assert code == 1, talk
    assert "5 of the latest trials failed for the same reason" in talk, talk
    found = reasons("doomed")
    assert len(found) < 30
    world.studies["doomed"] = len(found)
    return world.losses()


# ---- e: several at once ----------------------------------------------------------------------------------------------
def two_searches(world: World, rng: random.Random) -> Losses:
    """Two searches on one cluster and one store, then two people who promote at the same time: one champion.

    Searches this short find nothing that is sure to be of use, so both promote by force.
    """
    with stores.team_store(world.folder / "store") as store, nodes.cluster(world.folder / "c") as cluster:
        world.env |= cluster.env
        there = ("--address", cluster.address, "--tracking-uri", store.uri)
        pair = [world.launch(name, *there, space=world.space()) for name in ("one", "two")]
        for process in pair:
            world.finish(process)
        promoting = [world.start("promote", name, "--force", "--tracking-uri", store.uri) for name in ("one", "two")]
        for process in promoting:
            world.finish(process)
        _one_champion(store.uri)
        return _without_failures(world, "one", "two")


def _one_champion(uri: str) -> None:
    from loraxs_search.registry.store import Registry

    registry = Registry(uri)
    decisions = registry.history("faulty-reviews")
    assert [d.study for d in decisions if d.champion is None] in (["one"], ["two"]), "the second saw the first"
    promoted = [d for d in decisions if d.promoted]
    champion = registry.champion("faulty-reviews")
    assert champion is not None
    assert len(decisions) == 2
    assert (champion.decision.study, champion.version) == (promoted[-1].study, len(promoted))


# ---- f: disks --------------------------------------------------------------------------------------------------------
def disk_full(world: World, rng: random.Random) -> Losses:
    """The driver's disk fills up: the search says so and ends; with room again, `resume` goes on as if undisturbed."""
    with _small_home(world) as disk:
        reports = rng.randint(1, 4)
        process = world.launch("full")
        world.wait_for(process, lambda: world.num_reports("full") >= reports)
        disk.fill()
        code, talk = world.end(process)
        assert code == 1, talk
        assert "No space left" in talk or "is full" in talk, talk
        disk.free()
        world.resume("full")
        return _without_failures(world, "full")


def disk_full_on_worker(world: World, rng: random.Random) -> Losses:
    """A worker's disk is full: the search says so and ends; no trial is to blame; with room again, it goes on."""
    with disks.disk(world.folder / "worker", 300) as disk:
        disk.fill()
        return _faulty_worker(world, disk, "No space left", disk.free)


def disk_read_only(world: World, rng: random.Random) -> Losses:
    """The home cannot be written: nothing starts, and the error says what to do; nor does `resume`, until it can."""
    with _small_home(world) as disk:
        _stopped(world, "unwritable")
        disk.writable(False)
        for arguments in (("launch", str(world.space("other"))), ("resume", "unwritable")):
            code, talk = world.end(world.start(*arguments))
            assert code == 1, talk
            assert "Read-only file system" in talk, talk
            assert "hint:" in talk, talk
        disk.writable(True)
        world.resume("unwritable")
        return _without_failures(world, "unwritable")


def disk_read_only_on_worker(world: World, rng: random.Random) -> Losses:
    """A worker's home cannot be written: as when it is full."""
    with disks.disk(world.folder / "worker", 300) as disk:
        disk.writable(False)
        return _faulty_worker(world, disk, "Read-only file system", lambda: disk.writable(True))


def _faulty_worker(world: World, disk: disks.Disk, cause: str, mend: Callable[[], None]) -> Losses:
    two = [nodes.Node(), nodes.Node()]
    with nodes.cluster(world.folder / "c", two, {1: disk.path / "home"}) as cluster:
        world.env |= cluster.env
        code, talk = world.end(world.launch("worker", "--address", cluster.address))
        assert code == 1, talk
        assert cause in talk, talk
        assert "hint:" in talk, talk
        mend()
        world.finish(world.launch_or_resume("worker", "--address", cluster.address))
    return _without_failures(world, "worker")


def _stopped(world: World, study: str) -> None:
    """Begin a search and interrupt it."""
    process = world.launch(study)
    world.wait_for(process, lambda: world.num_reports(study) >= 1)
    process.send_signal(signal.SIGINT)
    assert world.end(process)[0] == 130


@contextlib.contextmanager
def _small_home(world: World) -> Iterator[disks.Disk]:
    """Move the world's home to a disk of its own."""
    with disks.disk(world.folder / "small", 400) as disk:
        world.move_home(disk.path / "home")
        yield disk


def _without_failures(world: World, *studies: str) -> Losses:
    """Assert that no trial was blamed; return what was lost."""
    failed = [reason for study in studies for state, reason in reasons(study) if state == "FAIL"]
    assert not failed, failed
    return world.losses()


CASES: dict[str, tuple[str, Case]] = {
    "driver killed": ("a", driver_killed),
    "host process killed": ("b", host_killed),
    "trial process killed": ("b", advancer_killed),
    "worker node killed": ("b", node_killed),
    "worker's network cut": ("b", network_cut),
    "MLflow away at first": ("c", mlflow_away_at_first),
    "MLflow away in between": ("c", mlflow_away_in_between),
    "MLflow away throughout": ("c", mlflow_away_throughout),
    "trials fail by themselves": ("d", trials_fail),
    "all trials fail": ("d", all_trials_fail),
    "two searches, two promotions at once": ("e", two_searches),
    "driver's disk full": ("f", disk_full),
    "worker's disk full": ("f", disk_full_on_worker),
    "driver's home read-only": ("f", disk_read_only),
    "worker's home read-only": ("f", disk_read_only_on_worker),
}


def missing_means(case: Case, world: World) -> str | None:
    """Say why a fault cannot be made on this machine; None when it can."""
    if case is network_cut:
        return no_boxes()
    if case in (mlflow_away_at_first, mlflow_away_in_between, mlflow_away_throughout, two_searches):
        return stores.no_team_store()
    if case in (disk_full, disk_full_on_worker, disk_read_only, disk_read_only_on_worker):
        return disks.no_mounts(world.folder)
    return None
