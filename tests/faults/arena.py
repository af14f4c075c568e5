"""Where an episode of chaos happens: hosts, servers of MLflow, a small disk, and what people do there."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.boxes import Box, Boxes, boxes, no_boxes
from support.servers import BUCKET, no_postgres

from faults import nodes, stores
from faults.history import History, Op
from faults.world import World, kill_tree, outputs
from loraxs_search.errors import StorageError
from loraxs_search.registry.pull import pull
from loraxs_search.registry.store import Registry
from loraxs_search.studies.storage import Storage

TASK = "faulty-reviews"
EARLIER, STUDIES = ("first", "second"), ("one", "two")  # studies that end before the first fault, and those it hits
TRIALS, REPORTS = 4, (6, 12, 18, 24)  # of a study, and steps after which each trial reports
_SEEDS = {study: seed for seed, study in enumerate((*EARLIER, *STUDIES))}  # adapters that all differ
_PACK_SIZES = {"one": "1", "two": "auto"}  # trials alone, and in packs
STORED = "two"  # the study that has a storage, so that other machines may go on with it
STORAGE = f"s3://{BUCKET}/studies"
_DISK_MB = 700
SEARCH_S = 900.0  # for a search to end
_COMMAND_S = 300.0  # for another command to end


@dataclass
class Arena:
    """Everything that faults can hit, and people's deeds, each of which the history notes.

    Args:
        boxes: Machines of the workers; this machine has the head of the cluster.
        elsewhere: Home of somebody on another machine.
    """

    world: World
    boxes: Boxes
    cluster: nodes.Cluster
    store: stores.TeamStore
    disk: stores.Disk
    elsewhere: Path
    history: History = field(default_factory=History)
    _drivers: dict[str, list[subprocess.Popen[str]]] = field(default_factory=dict)
    _logs: dict[str, bytes] = field(default_factory=dict)
    _promoting: int = 0
    _champion_version: int | None = None
    _left: set[str] = field(default_factory=set)

    # ---- what is hit -------------------------------------------------------------------------------------------------
    def worker(self, victim: int) -> nodes.Node:
        """Return a worker's Ray node."""
        return self.cluster.places[1 + victim % 2]

    def box(self, victim: int) -> Box:
        """Return a worker's machine."""
        return self.boxes.boxes[victim % 2]

    def reboot(self, victim: int) -> None:
        """Start a worker's machine again, and its Ray node."""
        node, box = self.worker(victim), self.box(victim)
        node.kill()
        box.reboot()
        node.prefix = box.prefix
        self.cluster.start_again(1 + victim % 2)

    def driver(self, study: str) -> list[psutil.Process]:
        """Return the driver of a study that began last, if it lives."""
        alive = [process for process in self._drivers.get(study, ()) if process.poll() is None]
        return [psutil.Process(process.pid) for process in alive[-1:]]

    # ---- what people do ----------------------------------------------------------------------------------------------
    def drive(self, study: str, timeout_s: float | None = None) -> Op:
        """Launch a study, or resume it, and wait for the end of its driver."""

        def ask() -> dict[str, Any]:
            if study in self._left or (self.world.home / "studies" / study / "study.json").exists():
                return self._await(study, self.resume(study), timeout_s)
            options = [*self._options(study), "--tracking-uri", self.store.uri]
            options += ["--set", f"search.seed={_SEEDS[study]}", "--set", f"search.pack_size={_PACK_SIZES[study]}"]
            return self._await(study, self.world.launch(study, *options), timeout_s)

        return self.history.do("driver", ask, study=study)

    def resume(self, study: str, home: Path | None = None) -> subprocess.Popen[str]:
        """Start a driver that goes on with a study."""
        return self.world.start("resume", study, *self._options(study), env=home and {"LORAXS_HOME": str(home)})

    def _options(self, study: str) -> list[str]:
        return ["--address", self.cluster.address, *(("--storage", STORAGE) if study == STORED else ())]

    def drive_elsewhere(self) -> Op:
        """Go on with the study that has a storage as somebody on another machine does."""

        def ask() -> dict[str, Any]:
            return self._await(STORED, self.resume(STORED, self.elsewhere), timeout_s=SEARCH_S)

        return self.history.do("driver", ask, study=STORED, elsewhere=True)

    def _await(self, study: str, driver: subprocess.Popen[str], timeout_s: float | None = None) -> dict[str, Any]:
        self._drivers.setdefault(study, []).append(driver)
        _, said = outputs(driver, timeout_s)
        if found := re.search(r"but (\S+) and \S+ each hold what the other lacks", said):  # do as its hint says
            path = Path(found[1])
            path.rename(path.parents[1] / f"left-{time.monotonic_ns()}")
            self._left |= {study} if self.world.home in path.parents else set()
        return {"code": driver.returncode, "said": said}

    def promote(self) -> Op:
        """Promote one study after the other by force, whether it has ended or not."""
        study = (*EARLIER, "one", *EARLIER, "two")[self._promoting % 6]
        self._promoting += 1

        def ask() -> dict[str, Any]:
            command = ["promote", study, "--force", "--tracking-uri", self.store.uri, "--json"]
            process = self.world.start(*command)
            out, said = outputs(process, _COMMAND_S)
            # Without a version: it is the champion already. One that failed may have made another one that.
            is_done = process.returncode == 0
            version = json.loads(out)["version"] or self._champion_version if is_done else None
            self._champion_version = version
            return {"code": process.returncode, "said": said, "version": version}

        return self.history.do("promote", ask, study=study)

    def look(self) -> Op:
        """Ask the registry who the champion is."""

        def ask() -> dict[str, Any]:
            champion = Registry(self.store.uri).champion(TASK)
            if champion is None:
                return {"version": None, "number": 0}
            return {"version": champion.version, "number": champion.decision.number}

        return self.history.do("champion", ask)

    def look_at_lease(self) -> Op:
        """Read who drives the study that has a storage."""

        def ask() -> dict[str, Any]:
            storage = Storage(STORAGE)
            key = max(storage.keys(f"{STORED}/lease"), default="")
            content = storage.get(key) if key else None
            if content is None:  # none yet, or taken over meanwhile
                return {"generation": 0}
            lease = json.loads(content)
            return {"generation": int(Path(key).stem), "token": lease["token"], "beat": lease["beat"]}

        return self.history.do("lease", ask)

    def pull(self) -> Op:
        """Pull the task's champion."""
        return self.history.do("pull", lambda: {"digest": pull(TASK, uri=self.store.uri).name})

    # ---- what there is at the end ------------------------------------------------------------------------------------
    def log_grown(self, study: str) -> tuple[bytes, bytes]:
        """Return a study's log as it was when this was asked last, and as it is now; its copy, where it has a storage.

        What a driver wrote after its last copy is lost to those who go on from the copy.
        """
        before, after = self._logs.get(study, b""), b""
        path = self.world.home / "studies" / study / "journal.jsonl"
        if study == STORED:
            try:
                after = Storage(STORAGE).get(f"{study}/{path.name}") or b""
            except StorageError:  # killed, or frozen
                return before, before
        elif path.exists():
            after = path.read_bytes()
        self._logs[study] = after
        return before, after

    def differs_from_copy(self, study: str) -> bool:
        """Return whether a study has a copy in a storage that is not the same."""
        path = self.world.home / "studies" / study / "journal.jsonl"
        return study == STORED and Storage(STORAGE).get(f"{study}/{path.name}") != path.read_bytes()

    def events(self, study: str) -> list[dict[str, Any]]:
        """Return a study's log."""
        path = self.world.home / "studies" / study / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def versions(self) -> dict[int, str]:
        """Return the digest of each version of the task."""
        return {own.version: own.digest for own in Registry(self.store.uri).versions(TASK)}

    def close(self) -> None:
        """End what people have started."""
        for process in (each for own in self._drivers.values() for each in own):
            if process.poll() is None:
                kill_tree(process.pid)
                process.communicate()


@contextlib.contextmanager
def arena() -> Iterator[Arena]:
    """Yield an arena with a champion; everything is ended and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="lx-"))
    with contextlib.ExitStack() as closing:
        closing.callback(shutil.rmtree, folder)
        disk = closing.enter_context(stores.disk(folder / "d", _DISK_MB))
        home = disk.path / "home"
        home.mkdir()
        patch = closing.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("LORAXS_HOME", str(home))
        machines = closing.enter_context(boxes(2, show=[folder, disk.path]))
        store = closing.enter_context(stores.team_store(folder / "s", machines.ip))
        places = [nodes.Node(machines.ip), *(nodes.Node(box.ip, box.prefix) for box in machines.boxes)]
        cluster = closing.enter_context(nodes.ray_cluster(places, folder=folder / "c"))
        for name, value in store.s3_env.items():
            patch.setenv(name, value)
        world = World(folder, home, env=dict(cluster.env), pack_size="1")
        place = Arena(world, machines, cluster, store, disk, folder / "elsewhere")
        closing.callback(place.close)
        world.trials = 1
        for study in EARLIER:
            options = ["--address", cluster.address, "--tracking-uri", store.uri]
            options += ["--set", f"search.seed={_SEEDS[study]}"]
            world.finish(world.launch(study, *options), timeout_s=1200.0)
        world.trials = TRIALS
        assert place.promote().value.get("version") == 1, place.history.ops[-1]
        yield place


def missing_means(folder: Path) -> str | None:
    """Say why there can be no arena here; None when there can."""
    return no_boxes() or stores.no_mounts(folder) or no_postgres()
